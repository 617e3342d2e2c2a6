"""Files that are not what they should be: random bytes, valid files with something changed, pickles that run code."""

import io
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st

ODD_PIECES = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"\r", b"\n", b"\r\n", b"\x85", "\u2028".encode(),
    b'"', b"{", b"[", b"\\u0000", b"\\ud800", b"-", b"9" * 400, b"x" * 300_000, b"[" * 5_000, b'{"a":' * 2_000,
    b"\n" * 1000, "😀".encode(), "▁".encode(), b"<unk>", b"NaN", b"1e999", b"&a [*a]",
]  # fmt: skip
ODD_VALUES = [
    None, True, 0, -1, 1.5, 2**31, 2**63, 2**70, float("nan"), float("inf"), "", "x", "\ud800", "a\0b", [], {}, [[]],
    [None], {"a": 1}, ["x"], "../../elsewhere", "os.system", "builtins.eval", [1] * 40,
]  # fmt: skip


class Executes:
    """An object whose pickle runs code where it is loaded: it makes the file `executed` in the folder above."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.open, ("../executed", os.O_CREAT | os.O_WRONLY)


@dataclass
class File:
    """A file by its name, with the arguments of `llp` that open it; `what` says what it should be."""

    what: str
    name: str
    content: bytes
    words: list[str]

    def write(self, folder: Path) -> list[str]:
        """Write it; returns the arguments of `llp`."""
        (folder / self.name).parent.mkdir(parents=True, exist_ok=True)
        (folder / self.name).write_bytes(self.content)
        return self.words


_FIT = ["fit", "--config", "configuration.yaml"]
_PATH, _TOKENIZER = [*_FIT, "--data.init_args.path"], [*_FIT, "--data.init_args.tokenizer"]
_CHECKPOINT = [
    ["test", "--ckpt_path", "x.ckpt"],
    ["fit", "--ckpt_path", "x.ckpt"],
    [*_FIT, "--init_from", "x.ckpt"],
    ["generate", "--max_tokens", "3", "--ckpt_path", "x.ckpt"],
    ["consolidate", "x.ckpt"],
]
_SENTENCE_PIECE = ["datamodules.SentencePiece", "--data.init_args.tokenizer.init_args.model_file=x.model"]
_HUGGING_FACE = ["datamodules.HuggingFaceTokenizer", "--data.init_args.tokenizer.init_args.file=tokenizer.json"]
_GENERATE = ["generate", "--ckpt_path", "run", "--max_tokens", "2", "--prompts"]
_PG19 = ["fit", "--config", "pg19.yaml", "--data.init_args.path", "pg19"]
OPENED: dict[str, tuple[str, str, list[list[str]]]] = {
    "text": ("../text.txt", "text/one.txt", [[*_PATH, "text"]]),
    "text, one file": ("../text.txt", "text", [[*_PATH, "text"]]),
    "jsonl": ("../lines.jsonl", "lines.jsonl", [[*_PATH, "lines.jsonl"]]),
    "sentencepiece": ("../tokenizer.model", "x.model", [[*_TOKENIZER, *_SENTENCE_PIECE]]),
    "tokenizer.json": ("../tokenizer.json", "tokenizer.json", [[*_TOKENIZER, *_HUGGING_FACE]]),
    "checkpoint": ("run/checkpoints/last.ckpt", "x.ckpt", _CHECKPOINT),
    "prompts.txt": ("../text.txt", "prompts.txt", [[*_GENERATE, "prompts.txt"]]),
    "prompts.jsonl": ("../prompts.jsonl", "prompts.jsonl", [[*_GENERATE, "prompts.jsonl"]]),
    "comparison": ("../comparison.yaml", "x.yaml", [["compare", "x.yaml", "--plan"]]),
    "configuration": ("configuration.yaml", "x.yaml", [["fit", "--config", "x.yaml"]]),
    "metadata.csv": ("../pg19/metadata.csv", "pg19/metadata.csv", [_PG19]),
}
"""What is opened: a valid file, the name of the changed one, and command lines that open it."""


@st.composite
def files(draw: st.DrawFn, trial: Path) -> File:
    """A file for the folder of a trial, where `OPENED` finds its valid ones."""
    what = draw(st.sampled_from(list(OPENED)))
    original, name, command_lines = OPENED[what]
    valid = (trial / original).read_bytes()
    how = draw(st.sampled_from(["bytes changed", "value changed", "cut", "random bytes", "pieces", "executes"]))
    content = None
    if how == "value changed":
        content = _with_odd_value(draw, what, valid)
    elif how == "executes" and what in ("checkpoint", "sentencepiece"):
        content = _executing(draw)
    elif how == "random bytes":
        content = draw(st.binary(max_size=300))
    elif how == "pieces":
        content = b"".join(draw(st.lists(st.sampled_from(ODD_PIECES) | st.binary(max_size=4), max_size=6)))
    elif how == "cut":
        content = valid[: draw(st.integers(0, max(0, len(valid) - 1)))]
    if content is None:
        content = _with_changed_bytes(draw, valid)
    return File(what, name, content, draw(st.sampled_from(command_lines)))


def _with_changed_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(valid)))
        length = draw(st.integers(0, 4))
        piece = draw(st.sampled_from(ODD_PIECES) | st.binary(max_size=3))
        valid = valid[:place] + piece + valid[place + length :]
    return valid


def _with_odd_value(draw: st.DrawFn, what: str, valid: bytes) -> bytes | None:
    """The file with a value of another type or size in it, or without one of its keys; None if it has no values."""
    if what in ("jsonl", "prompts.jsonl", "tokenizer.json"):
        lines = valid.splitlines() if what != "tokenizer.json" else [valid]
        place = draw(st.integers(0, len(lines) - 1))
        lines[place] = json.dumps(_changed(draw, json.loads(lines[place]))).encode()
        return b"\n".join(lines)
    if what in ("comparison", "configuration"):
        return yaml.safe_dump(_changed(draw, yaml.safe_load(valid))).encode()
    if what == "checkpoint":
        stream = io.BytesIO()
        torch.save(_changed(draw, torch.load(io.BytesIO(valid), weights_only=True)), stream)
        return stream.getvalue()
    return None


def _changed(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one value of it, at any depth, replaced or left out."""
    if isinstance(tree, dict | list) and tree and draw(st.integers(0, 5)) < 5:
        keys = list(tree) if isinstance(tree, dict) else list(range(min(len(tree), 20)))
        key = draw(st.sampled_from(keys))
        copy = dict(tree) if isinstance(tree, dict) else list(tree)
        if draw(st.integers(0, 9)) == 9:
            del copy[key]
        else:
            copy[key] = _changed(draw, tree[key])
        return copy
    return draw(st.sampled_from(ODD_VALUES))


def _executing(draw: st.DrawFn) -> bytes:
    """A pickle that runs code: bare, in torch's older format, or in the zip of a checkpoint."""
    form = draw(st.sampled_from(["bare", "legacy", "zip"]))
    if form == "bare":
        return pickle.dumps(Executes(), protocol=draw(st.sampled_from([0, 2, 4])))
    stream = io.BytesIO()
    torch.save({"state_dict": {}, "more": Executes()}, stream, _use_new_zipfile_serialization=form == "zip")
    return stream.getvalue()
