"""Two real processes on gloo, DDP and FSDP2: the losses, the test's figures and the samples of one process."""

import json
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIG = """
model:
  class_path: llp.LLP
  init_args: {dim: 16, n_layers: 2, n_heads: 2, segment_len: 8, learning_rate: 1.0e-2, schedule: halving}
data:
  class_path: datamodules.PythonReference
  init_args: {cache_dir: CACHE, tokenizer: datamodules.Bytes, window_len: 64}
trainer: {accelerator: cpu, max_steps: 5, log_every_n_steps: 1, gradient_clip_val: 0.1, limit_val_batches: 20,
  enable_progress_bar: false, enable_model_summary: false}
sample: {sample_tokens: 10}
"""
FSDP2 = """
trainer:
  strategy:
    class_path: lightning.pytorch.strategies.ModelParallelStrategy
    init_args: {data_parallel_size: 2, tensor_parallel_size: 1, process_group_backend: gloo,
      save_distributed_checkpoint: false}
"""
TWO = ["--trainer.devices", "2", "--data.init_args.batch_size", "2"]
STRATEGIES = {
    "single": ["--trainer.devices", "1", "--data.init_args.batch_size", "4"],
    "ddp": ["--trainer.strategy", "ddp", *TWO],
    "fsdp2": ["--config", "fsdp2.yaml", *TWO],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run under each strategy: its events, and the report of one checkpoint tested under it."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "config.yaml").write_text(CONFIG.replace("CACHE", str(folder / "cache")))
    (folder / "fsdp2.yaml").write_text(FSDP2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def llp(*arguments):
        command = [sys.executable, "-m", "llp", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    results = {}
    for name, flags in STRATEGIES.items():
        llp("fit", "--config", "config.yaml", "--name", name, *flags)
        events = EventAccumulator(str(folder / "lightning_logs" / name))
        events.Reload()
        # One checkpoint under all three: the figures are the same to the last digit printed.
        llp("test", "--ckpt_path", str(folder / "lightning_logs/single/checkpoints/last.ckpt"), *flags)
        results[name] = events, json.loads((folder / "lightning_logs/single/test.json").read_text())
    return results


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(runs, strategy):
    one, two = runs["single"][0], runs[strategy][0]
    for tag in ("train/loss", "train/grad_norm", "train/learning_rate", "train/tokens", "val/word_perplexity"):
        expected = [(event.step, event.value) for event in one.Scalars(tag)]
        got = [(event.step, event.value) for event in two.Scalars(tag)]
        assert len(expected) in (1, 5)
        assert [step for step, _ in got] == [step for step, _ in expected]
        assert [value for _, value in got] == pytest.approx([value for _, value in expected], rel=1e-5), tag


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_sample_as_one(runs, strategy):
    texts = [runs[name][0].Tensors("sample/text_summary")[0].tensor_proto.string_val for name in ("single", strategy)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_score_as_one(runs, strategy):
    _, expected = runs["single"]
    _, report = runs[strategy]
    assert report["protocol"]["certificate"]["causal"] is True
    assert report["protocol"]["complete"] is True
    assert len(report["rows"]) == len(expected["rows"]) > 5
    for row, expected_row in zip(report["rows"], expected["rows"], strict=True):
        assert row["tokens"] == expected_row["tokens"]
        for name in ("loss", "perplexity", "word_perplexity", "bits_per_byte"):
            assert f"{row[name]:,.4f}" == f"{expected_row[name]:,.4f}"
