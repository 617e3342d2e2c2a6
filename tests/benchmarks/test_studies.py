"""The report of a study with a script of its own comes out of its records to the byte."""

import shutil
import sys
from pathlib import Path

import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import attention_cut_report
import switch

ROOT = Path(__file__).parents[2]


def test_the_report_of_the_cut_attention(tmp_path):
    folder = ROOT / "results/pretrained"
    spec = yaml.safe_load((folder / "spec.yaml").read_text())
    shutil.copy(folder / "records.jsonl", tmp_path)
    attention_cut_report.write(spec, tmp_path)
    assert (tmp_path / "report.md").read_text() == (folder / "report.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.iterdir()} - {"spec.yaml"}


def test_the_report_of_the_switch():
    folder = ROOT / "results/switch"
    records = pd.read_json(folder / "records.jsonl", lines=True, precise_float=True)
    report = switch.report(yaml.safe_load((folder / "spec.yaml").read_text()), records)
    assert report == (folder / "report.md").read_text()
