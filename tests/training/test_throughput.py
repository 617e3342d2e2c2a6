"""FLOPs against torch's counter and the reference's masks; MFU against the rate of tokens."""

import time

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import llp
from datamodules import Bytes, WikiText103
from helpers import reference
from helpers.small_models import ARCHITECTURES, LATENT, build
from llp.decoder.patterns import history_count, segment_attention
from llp.training import throughput


@pytest.mark.parametrize("n", [1, 4, 9, 17, 18])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flops_are_those_of_the_products(name, n):
    """torch counts every product of matrices but the CPU's fused attention, whose pairs the reference's masks count."""
    model = build(name)
    tokens = torch.randint(19, (1, n))
    with FlopCounterMode(display=False) as forward:
        logits = model(tokens)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    pairs = n_pairs(model, n)
    assert model.decoder.flops(n) == forward.get_total_flops() + 4 * 16 * pairs
    # The embedding needs no gradient of its tokens; all else is two products for each one before.
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def n_pairs(model, n):
    """Pairs of query and key over all layers, from the reference's definition of who sees whom."""
    name, settings = type(model).__name__, dict(model.hparams)
    latent_len = settings.get("latent_len", n)
    sees = {
        "LLP": lambda: reference.llp_sees(settings["segment_len"]),
        "DoubleAttention": lambda: reference.double_sees(latent_len),
        "CompressedAttention": lambda: reference.double_sees(latent_len),
        "SplitAttention": lambda: reference.split_sees(latent_len, settings["segment_len"]),
    }.get(name, lambda: reference.transformer_sees)()
    total, held = 0, n
    for layer in range(model.n_layers):
        only_latents = name == "PerceiverAR" or (name in LATENT and layer == model.n_layers - 1)
        first = max(0, held - latent_len) if only_latents else 0
        total += sum(len(sees(i, held)) for i in range(first, held))
        if name == "PerceiverAR":
            held = min(held, latent_len)
        if name == "CompressedAttention" and layer == 0 and held > latent_len:
            held = settings["compressed_len"] + latent_len
    return total


def test_a_fused_pair_takes_two_products():
    """What torch counts where attention is not fused and nothing is masked."""
    query, key, value = (torch.randn(1, 2, 12, 8) for _ in range(3))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        segment_attention(query, key, value, 4)
    assert counter.get_total_flops() == 4 * 16 * (history_count(12, 12, 0, 4))


def test_mfu_follows_from_the_rate(run, work, monkeypatch):
    monkeypatch.setattr("llp.training.metrics.peak_flops", lambda device, dtype: 1e9)
    assert run("fit", "--config", "tiny.yaml", "--name", "run", "--trainer.accumulate_grad_batches", 2)[0] == 0
    events = EventAccumulator(str(work / "lightning_logs/run"))
    events.Reload()
    model = llp.LLP(257, dim=16, n_layers=2, n_heads=2, segment_len=8)  # that of `tiny.yaml`
    model.configure_model()
    flops_per_token = 3 * model.decoder.flops(32) / 32
    rates, shares, waits = (
        [e.value for e in events.Scalars(f"train/{tag}")] for tag in ("tokens_per_second", "mfu", "data_wait")
    )
    assert shares == pytest.approx([rate * flops_per_token / 1e9 for rate in rates])
    assert all(0 < wait < 0.5 for wait in waits)


def test_rates_leave_out_what_came_before_training(wikitext, tmp_path):
    """From Python, Lightning validates a little before the first step; a trainer can also fit twice."""
    data = WikiText103(str(wikitext), cache_dir=str(tmp_path / "c"), tokenizer=Bytes(), window_len=32, batch_size=2)
    model = llp.LLP(data.vocab_size, dim=16, n_layers=1, n_heads=2, segment_len=8, schedule="halving")
    logger = TensorBoardLogger(tmp_path, name=None, version="run")
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=4, log_every_n_steps=1, logger=logger, **quiet)
    started = time.perf_counter()
    trainer.fit(model, data)
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(model, data)
    elapsed = time.perf_counter() - started
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    rates = [event.value for event in events.Scalars("train/tokens_per_second")]
    assert len(rates) == 8
    assert sum(2 * 32 / rate for rate in rates) < elapsed
    assert all(event.value > 0 for event in events.Scalars("train/data_wait"))


def test_a_loader_of_ones_own_trains():
    """From Python, with any loader: what only ours know is left open."""
    model = llp.LLP(19, dim=16, n_layers=1, n_heads=2, segment_len=4, schedule="halving")
    windows = torch.randint(19, (8, 9))
    loader = DataLoader(TensorDataset(windows[:, :-1], windows[:, 1:]), batch_size=4)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_steps=2, log_every_n_steps=1, **quiet)
    trainer.fit(model, loader)
    assert trainer.global_step == 2


def test_matrix_rate_is_that_of_a_product():
    rate = throughput.matrix_rate(torch.device("cpu"), torch.float32)
    matrix = torch.ones(1024, 1024)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    assert 0.1 < rate * min(seconds) / (2 * 1024**3) < 10  # the unit is right, whatever else the machine does


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("16-true", torch.float16),
        ("32-true", torch.float32),
        ("64-true", torch.float64),
    ],
)
def test_dtype_of_products(precision, dtype):
    assert throughput.compute_dtype(precision) is dtype
