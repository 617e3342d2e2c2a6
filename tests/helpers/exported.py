"""Checkpoints without training."""

import ast
from pathlib import Path
from pydoc_data import topics

import lightning
import torch

from datamodules.tokenizers import Bytes, SentencePiece
from helpers import small_models
from llp.checkpoints import reading


class Data:
    """What a checkpoint stores of its data."""

    def __init__(self, tokenizer, start_token=None) -> None:
        self.tokenizer = tokenizer
        self.start_token = lambda: tokenizer.start_token if start_token is None else start_token


def small(name: str, **settings):
    """A small model in float32 on bytes."""
    return small_models.build(name, **{"vocab_size": 257, **settings}).float()


def save(path: Path, model, tokenizer=None, window_len: int = 16, start_token=None, scoring_window_len=None) -> Path:
    """Write the checkpoint that `llp fit` would write of this model; returns its path."""
    data = Data(tokenizer or Bytes(), start_token)
    checkpoint = {
        "architecture": reading.class_path(type(model)),
        "hyper_parameters": dict(model.hparams),
        "state_dict": model.state_dict(),
        "settings_history": [{"step": 1, "settings": {"batch_size": 2, "window_len": window_len}}],
        "tokenizer": reading.stored_tokenizer(data),
        "config": None,
        "initialized_from": None,
        "fingerprints": {},
        "global_step": 3,
        "seed": 0,
        "datamodule_hyper_parameters": {
            "window_len": window_len, "scoring_window_len": scoring_window_len, "scoring_stride": None
        },
        "pytorch-lightning_version": lightning.__version__,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return path


def trained_tokenizer(folder: Path, **settings) -> SentencePiece:
    """A small SentencePiece model of Python's own documentation."""
    lines = topics.topics["assignment"].splitlines(keepends=True)
    tokenizer = SentencePiece(**{"vocab_size": 500, **settings})
    tokenizer.train(lines)
    tokenizer.save(folder)
    return tokenizer


def imported_by(source: str) -> set[str]:
    """The packages that an exported file imports; each name at its top must have one meaning."""
    top = ast.parse(source).body
    imports = [node for node in top if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [one.asname or one.name for node in imports for one in node.names]
    names += [node.name for node in top if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    targets = [node.targets[0] for node in top if isinstance(node, ast.Assign)]
    names += [target.id for target in targets if isinstance(target, ast.Name)]
    assert sorted(names) == sorted(set(names))
    origins = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    return {origin.split(".")[0] for origin in origins}
