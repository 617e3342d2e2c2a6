"""The notebook runs from its first cell to its last, and is small."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs/first_look.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))  # of its kernel
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "Dilated is right" in printed
    assert "LeakyModel: model = position 0" in printed
    in_cache = printed.partition("in LLP's cache")[2]
    assert "250" not in in_cache  # not even the shortest text is kept whole


def test_its_outputs_are_small_and_of_one_run():
    assert NOTEBOOK.stat().st_size < 60_000
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
