"""The first snippet of docs/pretrained.md, as it stands there, with a small model."""

import re
from pathlib import Path

import llp
from helpers.small_llama import save_llama

PAGE = Path(__file__).parents[2] / "docs/pretrained.md"


def test_the_first_snippet_continues_a_book(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_llama("FOLDER_OR_HUB_ID")
    Path("book.txt").write_text("It was the best of times. " * 200)
    snippet = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    space = {"llp": llp}
    exec(snippet, space)
    assert space["tokens"].shape == (1, 5200 + 100)
    assert capsys.readouterr().out
