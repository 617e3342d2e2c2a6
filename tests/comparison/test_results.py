"""The reports in `results/` come out of their records to the byte."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from llp.comparison import plots

ROOT = Path(__file__).parents[2]
SPECIFICATIONS = {
    "cpu": "configs/compare/cpu.yaml",
    "pilot": "results/pilot/spec.yaml",
    "recall": "configs/compare/recall.yaml",
    "lora": "configs/compare/lora.yaml",
    "lora_untrained": "results/lora_untrained/spec.yaml",
}
SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
"""The size of the pretrained model, which is all that a report needs to know of it."""


def test_every_committed_comparison_is_tested():
    assert {path.parent.name for path in (ROOT / "results").glob("*/records")} == set(SPECIFICATIONS)


@pytest.mark.parametrize("name", SPECIFICATIONS)
def test_a_committed_report_comes_out_of_its_records_to_the_byte(run, work, monkeypatch, name):
    committed, written = ROOT / "results" / name, work / "lightning_logs/comparisons" / name
    for folder in ("configs", "results"):
        (work / folder).symlink_to(ROOT / folder)
    (work / "smollm2").mkdir()
    (work / "smollm2/config.json").write_text(json.dumps(SMOLLM2))
    (work / "smollm2/model.safetensors").touch()
    shutil.copytree(committed / "records", written / "records")
    if (committed / "timing.json").exists():
        shutil.copy(committed / "timing.json", written)
    monkeypatch.setattr(plots, "save", lambda figure, path: path.touch())  # drawn, but not rendered
    status, out, err = run("compare", SPECIFICATIONS[name], "--report")
    assert status == 0, err
    assert "noise floor" in out.partition("Written to")[0].lower()  # what was found is printed, too
    for path in [*committed.glob("report.*"), *committed.glob("*.csv")]:
        assert (written / path.name).read_bytes() == path.read_bytes(), path.name
    assert {path.name for path in committed.glob("*.png")} == {path.name for path in written.glob("*.png")}


@pytest.mark.parametrize(("arm", "quoted"), [("llp", "0.007 more (0.003 to 0.011;"), ("blocks", "0.030 more than")])
def test_the_gain_by_training_that_the_results_quote(arm, quoted):
    """How much more than dense attention: bits per byte, with an interval by Student's t over the books."""

    def documents(study, name):
        tests = [json.loads(path.read_text())["test"] for path in (ROOT / "results" / study).glob(f"records/{name}-*")]
        rows = [test["rows"][1:] for test in tests if test]  # without the sum over the books
        return np.mean([[(row["nats"], row["bytes"]) for row in own] for own in rows], axis=0).T  # (2, books)

    def gap(study):
        return documents(study, arm)[0] - documents(study, "dense")[0]

    gains, n_bytes = gap("lora_untrained") - gap("lora"), documents("lora", "dense")[1]
    interval = stats.ttest_1samp(gains / n_bytes / math.log(2), 0).confidence_interval(0.95)
    mean, page = gains.sum() / n_bytes.sum() / math.log(2), (ROOT / "docs/results.md").read_text()
    assert quoted in page
    assert quoted.startswith(f"{mean:.3f} more")
    assert f"({interval.low:.3f} to {interval.high:.3f}" in page
