"""Random configurations of `llp fit`, from the types in its own parser.

A configuration is a small one that trains, with some settings changed: most to values of their types, some to what no
type, or no person, expects.
"""

import json
import types
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from hypothesis import strategies as st
from jsonargparse._typehints import get_all_subclass_paths
from jsonargparse._util import import_object
from lightning.pytorch.cli import LightningArgumentParser

from helpers.small_models import OWN_SETTINGS
from llp.commands.completion import command_parser

_TEXT = {"tokenizer": "datamodules.Bytes", "window_len": 32, "batch_size": 2}
_TASK = {"window_len": 32, "label_len": 8, "vocab_size": 64, "batch_size": 2, "n_validation": 4, "n_test": 4}
DATA: dict[str, dict[str, Any]] = {
    "datamodules.TextFiles": {"path": "../text", **_TEXT},
    "datamodules.WikiText103": {"path": "../wikitext", **_TEXT},
    "datamodules.PG19": {"path": "../pg19", **_TEXT},
    "datamodules.AssociativeRecall": {"n_pairs": 4, **_TASK},
    "datamodules.MirroredCopy": _TASK,
    "datamodules.PythonReference": {"cache_dir": "../cache", **_TEXT},
    "datamodules.PythonSource": {"cache_dir": "../cache", **_TEXT},
}
"""Every data module with settings for a small model. The last two have long texts, encoded once for all trials."""
MODELS: dict[str, dict[str, Any]] = {
    f"llp.{name}": {"dim": 16, "n_layers": 2, "n_heads": 2, "warmup_steps": 1, **own}
    for name, own in {
        **OWN_SETTINGS,
        "PerceiverAR": {"latent_len": 8},
        "DoubleAttention": {"latent_len": 8},
        "SplitAttention": {"latent_len": 8, "segment_len": 4},
        "CompressedAttention": {"latent_len": 8, "history_len": 24, "compressed_len": 4},
    }.items()
}
TRAINER = {"accelerator": "cpu", "devices": 1, "max_steps": 1, "enable_progress_bar": False}

USUAL: dict[str, list[Any]] = {
    # Sizes: any others of the type would be as good, and take longer.
    "dim": [16, 8, 32, 24], "n_layers": [2, 1, 3], "n_heads": [2, 1, 4], "mlp_ratio": [4, 1, 2],
    "segment_len": [4, 8, 16], "look_back": [1, 0, 2], "dense_every": [None, 1, 2], "window": [8, 1, 32, 500],
    "latent_len": [8, 1, 16], "history_len": [24, 8, 40], "compressed_len": [4, 1, 8], "n_pairs": [4, 1, 2],
    "window_len": [32, 16, 33, 64], "train_stride": [None, 1, 16, 40], "burn_in": [0, 8, 16, "reach"],
    "scoring_window_len": [None, 32, 16, 64], "scoring_stride": [None, 4, 16, 1], "label_len": [8, None, 5, 32],
    "n_validation": [4, 1, 10], "n_test": [4, 1, 10], "sample_lines": [500000, 10, 1], "batch_size": [2, 1, 3, 8],
    "sample_tokens": [0, 1, 8], "prompt_tokens": [32, 0, 4], "timeout_s": [1800.0, 1.0, 0.5],
    "devices": [1, "auto", "1", [0]], "num_nodes": [1, "1"], "max_steps": [1, 2, 3, -1], "max_epochs": [1, None, 2, -1],
    "max_time": ["00:01:00:00", {"hours": 1}, None], "compile": [False],
    # Words, where the type says only that it is text.
    "accelerator": ["cpu", "auto", "gpu", "tpu", "mps", "cuda", "abacus"],
    "strategy": ["auto", "ddp", "fsdp", "ddp_spawn", "deepspeed", "fsdp2", "single_device"],
    "gradient_clip_algorithm": ["norm", "value", "other"], "profiler": ["simple", "advanced", "pytorch", "xla", None],
    "plugins": [None],
    # Those that watch a training: what others of Lightning's change in it, is for their own code to check.
    "callbacks": [
        None, "lightning.pytorch.callbacks.LearningRateMonitor", "lightning.pytorch.callbacks.Timer",
        {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}},
        [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "x"}}],
        ["lightning.pytorch.callbacks.DeviceStatsMonitor", "lightning.pytorch.callbacks.TQDMProgressBar"],
        "lightning.pytorch.callbacks.RichProgressBar", "lightning.pytorch.callbacks.EMAWeightAveraging",
    ],
    "logger": [
        None, True, {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "csv"}},
        {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "other", "name": ""}},
    ],
    "monitor": ["val/loss", "val/perplexity", "val/bits_per_byte", "train/loss", "loss"], "mode": ["min", "max", "x"],
    "name": ["run", None, "Läufe 1", "a/b", "..", ""], "default_root_dir": [None, "runs", "", "configuration.yaml"],
    "cache_dir": ["cache", "~/.cache/llp", "", "configuration.yaml"], "text_key": ["text", "body", ""],
    "model_registry": [None, "somewhere"], "hub_id": ["x/y"], "start_token": [None, "<s>", "</s>"],
    "model_file": [None, "../tokenizer.model", "../tokenizer.json", "nowhere"],
    "file": ["../tokenizer.json", "..", "../tokenizer.model", "nowhere"],
    "title_column": ["short_book_title"], "text_column": ["text"], "hub_revision": ["main"],
    "validation_share": [0.05, 0.1, 0.5], "test_share": [0.05, 0.1, 0.5],
    "learning_rate": [1e-3, 1e-8, 1.0, 1e4], "rotary_base": [1e4, 1.0, 2.0], "betas": [[0.9, 0.95], [0.0, 0.0]],
}  # fmt: skip
PATHS = {
    "datamodules.TextFiles": ["../text", "../text.txt", "../lines.jsonl", "../splits", "nowhere", "", None],
    "datamodules.WikiText103": ["../wikitext", "../text", "nowhere"],
    "datamodules.PG19": ["../pg19", "../text", "nowhere"],
}
"""Null only where it would not be the Hub."""
ODD = [
    0, -1, 1, 2**31, 2**63, 10**9, 10**12, 10**30, -(2**63), 1.5, -0.5, 1e308, float("nan"), float("inf"),
    float("-inf"), None, True, False, "", " ", "x", "true", "null", "nan", "1e3", "0x10", "1_000", "ä",
    "{", "a: b", "- 1", "\udcff", [], {}, [1, 2], [None], [[]], {"a": 1}, "llp.LLP", "datamodules.Bytes", "os.system",
    "nowhere.Class", "builtins.print", "lightning.Trainer", {"class_path": "nowhere.Class"}, {"class_path": None},
    {"class_path": "llp.LLP", "init_args": []}, {"class_path": "builtins.dict", "init_args": {"a": 1}},
    {"init_args": 5},
]  # fmt: skip
"""What no type, or no person, expects; also what a type allows and a machine can't hold."""
SECTIONS = (
    "model", "data", "trainer", "checkpoint", "guard", "stall", "sample", "certificate", "model.class_path",
    "data.class_path", "model.init_args", "data.init_args", "model.init_args.dimm", "data.init_args.pathh",
    "trainer.max_stepz", "nothing", "model.dim", "trainer.max_steps.more", "model.init_args.dim.more",
    "checkpoint.dirpath", "model.init_args.vocab_size", "data.init_args.seed", "seed_everything", "ckpt_path",
    "init_from", "config",
)  # fmt: skip
"""Sections as a whole, and names that are not, or should not be, there."""
CLASSES = ("accelerator", "strategy", "profiler", "plugins")
"""Settings of the Trainer that take a class of Lightning's, too."""


@dataclass(frozen=True)
class Setting:
    """A setting by its full name, with its type and its default."""

    name: str
    type: Any
    default: Any


@dataclass
class Configuration:
    """A configuration file and the flags behind it; `changed` are the settings that were drawn."""

    file: dict[str, Any]
    flags: list[str]
    changed: dict[str, Any]

    def write(self, folder: Path) -> list[str]:
        """Write the file; returns the arguments of `llp fit`."""
        (folder / "configuration.yaml").write_text(yaml.safe_dump(self.file, sort_keys=False))
        return ["fit", "--config", "configuration.yaml", *self.flags]


def small(model: str, data: str) -> dict[str, Any]:
    """A configuration that trains a small model."""
    return {
        "model": {"class_path": model, "init_args": dict(MODELS[model])},
        "data": {"class_path": data, "init_args": dict(DATA[data])},
        "trainer": dict(TRAINER),
        "sample": {"sample_tokens": 0},
    }


# The schema


@cache
def general_settings() -> list[Setting]:
    """The settings of all sections but the model's and the data's, from the parser of `llp fit`."""
    files = {"config", "model", "data", "ckpt_path", "init_from"}
    return [setting for setting in _settings(command_parser("fit"), "") if setting.name not in files]


@cache
def class_settings(path: str, prefix: str) -> list[Setting]:
    """The arguments of a class's constructor, and those that it passes on."""
    parser = LightningArgumentParser()
    parser.add_class_arguments(import_object(path), "it", fail_untyped=False)
    return [Setting(f"{prefix}.{one.name}", one.type, one.default) for one in _settings(parser, "it.")]


def _settings(parser: Any, prefix: str) -> Iterable[Setting]:
    for action in parser._actions:
        if hasattr(action, "_typehint") and action.dest.startswith(prefix) and not action.dest.endswith(".help"):
            yield Setting(action.dest.removeprefix(prefix), action._typehint, action.default)


# Values


def usual(setting: Setting) -> st.SearchStrategy[Any]:
    """Values that a person could give."""
    last = setting.name.rpartition(".")[2]
    if last in CLASSES:
        return st.sampled_from(USUAL[last]) | of_type(setting.type, setting.default)
    if last in USUAL:
        return st.sampled_from(USUAL[last])
    return of_type(setting.type, setting.default)


def of_type(hint: Any, default: Any = None) -> st.SearchStrategy[Any]:
    """Values of a type, the default among them."""
    origin, arguments = get_origin(hint), get_args(hint)
    numbers = [default] if isinstance(default, int | float) and not isinstance(default, bool) else []
    if origin in (Union, types.UnionType):
        return st.one_of([of_type(one, default) for one in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.tuples(*map(of_type, arguments)).map(list)
    if origin in (list, Iterable) or getattr(origin, "__name__", "") == "Iterable":
        return st.lists(of_type(arguments[0]), max_size=2)
    if origin is dict:
        return st.just({})
    simple: dict[Any, list[Any]] = {
        bool: [False, True],
        int: [*numbers, 1, 2, 4],
        float: [*numbers, 0.5, 1.0, 0.1, 2.0, 0.0],
        str: ["word", *([default] if isinstance(default, str) else [])],
        types.NoneType: [None],
        timedelta: ["00:00:01:00"],
        Path: ["folder"],
        dict: [{}],
    }
    if hint in simple:
        return st.sampled_from(simple[hint])
    return of_class(hint) if isinstance(hint, type) else st.none()


def of_class(base: type) -> st.SearchStrategy[Any]:
    """A class of this kind, by its path alone or with some of its arguments."""
    paths = get_all_subclass_paths(base)
    if not paths:
        return st.none()

    @st.composite
    def draw_class(draw: st.DrawFn) -> Any:
        path = draw(st.sampled_from(paths))
        settings = class_settings(path, "")
        chosen = draw(st.lists(st.sampled_from(settings), max_size=2, unique_by=str)) if settings else []
        values = {setting.name.removeprefix("."): draw(usual(setting)) for setting in chosen}
        if path.endswith("HuggingFaceTokenizer"):
            values.setdefault("file", "../tokenizer.json")
        if path.endswith("SentencePiece") and "model_file" not in values:
            values["vocab_size"] = draw(st.sampled_from([280, 300, 261, 5000]))
        return {"class_path": path, "init_args": values} if values else path

    return draw_class()


def odd(setting: Setting) -> st.SearchStrategy[Any]:
    """Values that a person should not give; but none that would wait for other machines, or ask the Hub."""
    last = setting.name.rpartition(".")[2]
    values = ODD
    if last == "num_nodes":
        values = [0, -1, "x", "", None, [], {}, [1, 2]]
    if last == "path":
        values = [value for value in ODD if value is not None and value != "null"]
    if last == "compile":
        values = [value for value in ODD if value not in (True, 1, "true")]
    return st.sampled_from(values)


# Configurations


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """A configuration that trains a small model, with some of its settings changed."""
    model, data = draw(st.sampled_from(list(MODELS))), draw(st.sampled_from(list(DATA)))
    file = small(model, data)
    long_text = DATA[data].get("cache_dir") is not None
    of_model = [one for one in class_settings(model, "model.init_args") if not one.name.endswith(".vocab_size")]
    of_data = [
        one
        for one in class_settings(data, "data.init_args")
        if one.name.rpartition(".")[2] not in ("seed", *(("tokenizer", "cache_dir") if long_text else ()))
    ]
    pools = [of_model, of_data, general_settings()]
    changed: dict[str, Any] = {}
    flags: list[str] = []
    how_many = draw(st.sampled_from([(2, 0), (0, 1), (1, 1), (4, 0), (0, 0), (6, 0), (2, 2)]))
    for is_odd in [False] * how_many[0] + [True] * how_many[1]:
        if is_odd and draw(st.integers(0, 5)) == 5:
            name = draw(st.sampled_from(SECTIONS))
            value = draw(st.sampled_from(ODD))
        else:
            setting = draw(st.sampled_from(draw(st.sampled_from(pools))))
            name = setting.name
            if name == "data.init_args.path" and not is_odd:
                value = draw(st.sampled_from(PATHS[data]))
            else:
                value = draw(odd(setting) if is_odd else usual(setting))
        changed[name] = value
        if draw(st.booleans()) or not _put(file, name.split("."), value):
            flags.append(f"--{name}={_as_flag(value)}")
    return Configuration(file, flags, changed)


def _put(tree: Any, keys: list[str], value: Any) -> bool:
    """Put a value into nested mappings; returns whether it has a place there."""
    for key in keys[:-1]:
        if not isinstance(tree, dict):
            return False
        tree = tree.setdefault(key, {})
    if not isinstance(tree, dict):
        return False
    tree[keys[-1]] = value
    return True


def _as_flag(value: Any) -> str:
    if isinstance(value, float):
        return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}.get(str(value), str(value))
    return value if isinstance(value, str) else json.dumps(value)
