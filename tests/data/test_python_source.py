"""The standard library as a text: which files, in which split, and which are left out."""

import sysconfig
from pathlib import Path

from datamodules import PythonSource


def test_the_library_that_runs():
    """Single modules are dealt out by fives, packages are for training; what is held out is in no other split."""
    data = PythonSource()
    texts = {split: {text.name: b"".join(text.blocks) for text in data.texts(split)} for split in data.splits}
    for split, least in (("train", 5_000_000), ("validation", 300_000), ("test", 300_000)):
        assert sum(map(len, texts[split].values())) > least
    modules = sorted(path.name for path in Path(sysconfig.get_path("stdlib")).glob("*.py"))
    modules = [name for name in modules if not name.startswith("_sysconfigdata")]
    assert texts["validation"].keys() <= {*modules[::5]}
    assert [*texts["test"]] == [name for name in modules[2::5] if name in texts["test"]]
    assert len(texts["test"]) > 0.9 * len(modules[2::5])
    assert {"json/decoder.py", "asyncio/events.py", *modules[1:2]} <= texts["train"].keys()
    left_out = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
    assert all(left_out.isdisjoint(Path(name).parts) for name in texts["train"])
    assert {*texts["validation"].values()}.isdisjoint(texts["test"].values())
    assert {*texts["validation"].values(), *texts["test"].values()}.isdisjoint(texts["train"].values())
