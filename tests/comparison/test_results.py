"""The reports in `results/` come out of their records to the byte."""

import json
import shutil
from pathlib import Path

import pytest

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
