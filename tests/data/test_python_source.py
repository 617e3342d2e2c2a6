"""The standard library as a text: which files, in which split, and which are left out."""

import sysconfig

import pytest

from datamodules import PythonSource

MODULES = ["abc", "bisect", "cmd", "dis", "enum", "fractions", "glob", "heapq"]  # 1, 6 validate; 3, 8 test


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of eight modules, two packages and what is left out."""
    folder = tmp_path / "lib"
    texts = {f"{name}.py": f"import sys\n\nprint({name!r})\n" for name in MODULES}
    texts |= {f"json/{name}.py": f"'''{name}'''\n" for name in ("__init__", "decoder", "tool")}
    texts |= {
        "xml/dom/minidom.py": "pass\r\nx = 'ä'",
        "xml/__init__.py": " \n",
        "xml/sax.py": "",
        "xml/latin.py": "\udce9",
    }
    left_out = ["site-packages/numpy.py", "dist-packages/apt.py", "test/test_json.py", "json/tests/test_tool.py"]
    left_out += ["idlelib/idle_test/test_run.py", "encodings/cp437.py", "pydoc_data/topics.py", "__pycache__/abc.py"]
    left_out += ["_sysconfigdata__linux.py", "config-3.11-x86_64/config.py", "json/__pycache__/tool.py", "README.txt"]
    for name, text in {**texts, **dict.fromkeys(left_out, "left out\n")}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(folder)}.__getitem__)
    return folder


def names(split):
    return [text.name for text in PythonSource().texts(split)]


def test_single_modules_are_dealt_out_by_fives_and_packages_are_for_training(library):
    assert names("validation") == ["abc.py", "fractions.py"]
    assert names("test") == ["cmd.py", "heapq.py"]
    packages = ["json/__init__.py", "json/decoder.py", "json/tool.py", "xml/dom/minidom.py"]
    assert names("train") == ["bisect.py", "dis.py", "enum.py", "glob.py", *packages]


def test_a_text_is_in_one_split_only(library):
    """What the test has is in no other split, and training has nothing of validation."""
    shared = "x = 1\n"
    for name in ("abc", "cmd", "dis"):
        (library / f"{name}.py").write_text(shared)
    (library / "json/tool.py").write_bytes((library / "fractions.py").read_bytes())
    assert names("test") == ["cmd.py", "heapq.py"]
    assert names("validation") == ["fractions.py"]
    train = names("train")
    assert "dis.py" not in train
    assert "json/tool.py" not in train
    assert "json/decoder.py" in train


def test_the_library_that_runs():
    """Enough text in every split."""
    data = PythonSource()
    texts = {split: {text.name: b"".join(text.blocks) for text in data.texts(split)} for split in data.splits}
    for split, least in (("train", 5_000_000), ("validation", 300_000), ("test", 300_000)):
        assert len(texts[split]) > 20
        assert sum(map(len, texts[split].values())) > least
    assert {"json/decoder.py", "asyncio/events.py"} <= texts["train"].keys()
    held_out = {*texts["validation"], *texts["test"]}
    assert not any("/" in name for name in held_out)
    assert {*texts["validation"].values(), *texts["test"].values()}.isdisjoint(texts["train"].values())
