"""Where a benchmark's text comes from, by hand: what keys it, which rows are asked for, which part is which split."""

import pytest

from datamodules import PG19, Bytes, WikiText103
from datamodules.documents import Text
from datamodules.wikitext103 import _articles


def folder_of(data_class, tmp_path, **settings):
    return data_class(cache_dir=str(tmp_path), tokenizer=Bytes(), **settings).prepared_folder()


@pytest.mark.parametrize(
    ("data_class", "changes"),
    [
        (WikiText103, [{"release": "raw"}, {"articles": True}, {"hub_id": "a/copy"}, {"hub_revision": "1a2b3c"}]),
        (PG19, [{"hub_id": "a/copy"}, {"hub_revision": "1a2b3c"}, {"title_column": "t"}, {"text_column": "x"}]),
    ],
)
def test_each_setting_of_the_text_makes_a_folder_of_its_own(tmp_path, data_class, changes):
    folders = {folder_of(data_class, tmp_path, **changed) for changed in [{}, *changes]}
    assert len(folders) == 1 + len(changes)
    windows = {"window_len": 7, "train_stride": 3, "batch_size": 2, "seed": 5, "scoring_stride": 2}
    assert folder_of(data_class, tmp_path, **windows) in folders  # how it is read makes none


@pytest.mark.parametrize(
    ("lines", "titles"),
    [
        ([" \n", " = One = \n", " \n", " text \n"], ["One"]),
        ([" \n", " = One = \n", " text \n", " \n", " = Two = \n", " \n", " = Three = \n", " \n"], ["", "Two", "Three"]),
        ([" text \n", " = One = \n", " \n", " text \n"], [""]),  # no blank line before it: no title
        ([" \n", " = One = \n", " text \n"], [""]),  # none behind it
        ([" \n", " = = Section = = \n", " \n", " text \n"], [""]),
        ([" \n", " = One = \n"], ["One"]),  # the end of the text counts as blank
        (["\n", " = = 2 = One = = \n", " \n", "\n", " = Two = 2 = \n", "\n"], ["", "Two = 2"]),
    ],
)
def test_an_article_begins_at_a_title_between_blank_lines(lines, titles):
    articles = [
        (text.name, b"".join(text.blocks).decode()) for text in _articles(Text("all", ["".join(lines).encode()]))
    ]
    assert "".join(text for _, text in articles) == "".join(lines)
    assert [name for name, text in articles if text] == titles
