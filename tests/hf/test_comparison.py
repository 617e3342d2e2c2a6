"""`llp compare` of pretrained models: arms that differ by their attention."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import llp
from helpers.corpus import write_books
from helpers.in_process import in_this_process
from helpers.small_llama import NINE_HEADS, save_llama
from llp.comparison.spec import merged
from llp.comparison.workers import Workers
from llp.decoder.patterns import SegmentAttention
from llp.hf import set_attention

SEGMENTS = {"class_path": "llp.SegmentAttention", "init_args": {"segment_len": 8}}
WINDOW = {"class_path": "llp.SlidingWindowAttention", "init_args": {"window": 12}}
COMPARISONS = Path(__file__).parents[2] / "configs/compare"
LORA = {"rank": 2, "targets": ["q_proj", "v_proj"]}


def write_texts(work):
    def text(split, number):
        return "".join(f"line {n} of {split} {number} has {n * n} and {n % (number + 2)}\n" for n in range(4))

    numbers = {"train": range(3), "validation": range(3, 4), "test": range(4, 7)}
    write_books(work / "texts", {split: {n: text(split, n) for n in own} for split, own in numbers.items()})


def executed(run, work, monkeypatch, settings):
    """The records by arm, and the report, of a comparison that is executed in this process."""
    monkeypatch.setattr(Workers, "_start", in_this_process)
    (work / "spec.yaml").write_text(yaml.safe_dump(settings))
    status, _, err = run("compare", "spec.yaml")
    assert status == 0, err
    folder = work / "lightning_logs/comparisons" / settings["name"]
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("records/*.json"))]
    return {record["arm"]: record for record in records}, (folder / "report.md").read_text()


@pytest.fixture
def compare(run, work, monkeypatch):
    """Write a specification, run it in this process, and return its records by arm and its report."""
    save_llama("llama")
    write_texts(work)

    def compare(arms, **changes):
        data = {"path": "texts", "cache_dir": "cache", "window_len": 32, "batch_size": 2}
        shared = {
            "model": {"init_args": {"path": "llama", "keep_first": 2}},
            "data": {"class_path": "datamodules.TextFiles", "init_args": data},
            "trainer": {"accelerator": "cpu", "devices": 1, "limit_val_batches": 2},
        }
        arms = {name: {"class_path": "llp.PretrainedModel", **arm} for name, arm in arms.items()}
        settings = {"name": "tiny", "shared": shared, "arms": arms, "reference": "dense", "seeds": [0], "slices": False}
        windows = {"scoring_window_len": 32, "scoring_stride": 16}
        return executed(run, work, monkeypatch, {**settings, **windows, **changes})

    return compare


def text_of(work, row):
    return (work / "texts" / row["document"]).read_text()


@torch.no_grad()
def by_hand(model, text):
    """Nats of a text, read from its start token on in windows of 32 of which the last 16 count."""
    tokens, nats = torch.tensor([256, *AutoTokenizer.from_pretrained("llama")(text).input_ids]), 0.0
    for stop in range(16, len(tokens) + 15, 16):
        part = tokens[max(0, stop - 32) : stop + 1]
        n_scored = len(tokens[stop - 16 + 1 : stop + 1])
        losses = -model(part[:-1].unsqueeze(0), use_cache=False).logits[0].double().log_softmax(-1)
        nats += losses[-n_scored:].gather(1, part[-n_scored:, None]).sum().item()
    return nats


def test_untrained_arms_differ_by_their_attention(compare, run, work):
    arms = {"dense": {}, "llp": {"init_args": {"pattern": SEGMENTS}}, "window": {"init_args": {"pattern": WINDOW}}}
    primary = [["llp", "window", "windows"], ["llp", "dense", "windows"]]
    records, report = compare(arms, steps=0, primary=primary, slices=True)
    model = AutoModelForCausalLM.from_pretrained("llama")
    for arm, pattern in (("dense", None), ("llp", SegmentAttention(8))):
        set_attention(model, pattern, keep_first=2)
        for row in records[arm]["test"]["rows"][1:]:
            assert row["nats"] == pytest.approx(by_hand(model, text_of(work, row)), rel=1e-5)
    assert records["window"]["test"]["rows"][0]["nats"] != records["llp"]["test"]["rows"][0]["nats"]
    assert {record["steps"] for record in records.values()} == {0}
    assert "Loss over cost" not in report
    assert "the intervals are over documents alone" in report
    assert "p = " in report or "p < " in report
    assert "can't be compared" not in report
    run("compare", "spec.yaml", "--plan")
    status, _, err = run("compare", "spec.yaml")
    assert (status, "under way here" in err) == (0, False)


def test_an_arm_that_is_trained_with_shifted_segments_and_tested_dense(compare, work):
    """LongLoRA's; its test is that of the trained model with dense attention."""
    shifted = {"class_path": "llp.ShiftedSegmentAttention", "init_args": {"segment_len": 16, "n_heads": 4}}
    settings = {"lora": LORA, "schedule": "halving"}
    arms = {
        "dense": {"init_args": settings},
        "shifted": {"init_args": {**settings, "pattern": shifted}, "test_init_args": {"pattern": None}},
    }
    training = {"steps": 2, "learning_rates": [0.01], "extensions": 0, "validations": 1}
    records, report = compare(arms, primary=[["shifted", "dense", "windows"]], **training)
    place = work / "lightning_logs/comparisons/tiny/lightning_logs/shifted-lr0.01-steps2-s0"
    module = llp.load(place / "checkpoints/last.ckpt").module
    assert module.pattern is not None
    for pattern, is_equal in ((module.pattern, False), (None, True)):
        set_attention(module.decoder.model, pattern, keep_first=2)
        for row in records["shifted"]["test"]["rows"][1:]:
            found = by_hand(module.decoder.model, text_of(work, row))
            assert (row["nats"] == pytest.approx(found, rel=1e-5)) is is_equal
    assert "--model.init_args.pattern=null" in records["shifted"]["commands"][1]
    assert "can't be compared" not in report


def small(settings):
    """Settings of a large comparison with windows and segments a thirty-second as long, and four narrow layers."""
    if isinstance(settings, list):
        return [small(one) for one in settings]
    if not isinstance(settings, dict):
        return settings
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
             "intermediate_size": 24}  # fmt: skip
    made = {key: sizes.get(key, small(value)) for key, value in settings.items()}
    made |= {key: settings[key] // 32 for key in ("segment_len", "window") if isinstance(settings.get(key), int)}
    return made | {key: settings[key][:4] for key in ("no_rope_layers",) if key in settings}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ladder_60m", "ladder_190m", "ladder_370m", "lora"])
def test_rehearsal_of_a_large_comparison(run, work, monkeypatch, name):
    """Everything that its specification says but its size: all arms are trained, tested and compared."""
    settings = small(yaml.safe_load((COMPARISONS / f"{name}.yaml").read_text()))
    settings["base"] = [str(COMPARISONS / path) for path in settings["base"]]
    save_llama("smollm2", **NINE_HEADS)
    write_texts(work)
    window_len = 72 if name == "lora" else 64
    tokenizer = {"class_path": "datamodules.SentencePiece", "init_args": {"vocab_size": 280}}
    data = {"path": "texts", "cache_dir": "cache", "window_len": window_len, "batch_size": 1, "tokenizer": tokenizer}
    trainer = {"accelerator": "cpu", "precision": "32-true", "accumulate_grad_batches": 1, "limit_val_batches": 2}
    settings["shared"] = merged(settings["shared"], {"data": {"init_args": data}, "trainer": trainer})
    windows = {"scoring_window_len": window_len, "scoring_stride": window_len // 2}
    training = {"steps": 2, "learning_rates": [1e-3], "extensions": 0, "seeds": [0]}
    records, report = executed(run, work, monkeypatch, {**settings, **windows, **training})
    assert records.keys() == settings["arms"].keys()
    assert "can't be compared" not in report
    assert "✗" not in report
    assert len({record["test"]["rows"][0]["nats"] for record in records.values()}) == len(records)
