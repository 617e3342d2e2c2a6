"""Random configurations of `llp fit`: a small one that trains, with some settings changed.

Most are changed to usual values, some to what no type, or no person, expects.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from campaigns.forked import llp_in

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
        "Transformer": {},
        "LLP": {"segment_len": 4},
        "SlidingWindow": {"window": 5},
        "ShiftedSegments": {"segment_len": 6},
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
    "max_time": ["00:01:00:00", {"hours": 1}, None], "compile": [False], "val_check_interval": [None, 1, 2, 0.5],
    # Words, where the default does not show which there are.
    "accelerator": ["cpu", "auto", "gpu", "tpu", "mps", "cuda", "abacus"],
    "strategy": ["auto", "ddp", "fsdp", "ddp_spawn", "deepspeed", "fsdp2", "single_device"],
    "precision": [None, "32-true", "bf16-mixed", "bf16-true", "16-mixed", 32], "plugins": [None],
    "gradient_clip_algorithm": [None, "norm", "value", "other"], "schedule": ["cosine", "halving", "constant"],
    "profiler": ["simple", "advanced", "pytorch", "xla", None], "initialization": ["normal", "torch"],
    "callbacks": [
        None, "lightning.pytorch.callbacks.LearningRateMonitor", "lightning.pytorch.callbacks.Timer",
        {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}},
        [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "x"}}],
        ["lightning.pytorch.callbacks.DeviceStatsMonitor", "lightning.pytorch.callbacks.TQDMProgressBar"],
    ],
    "logger": [
        None, True, {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "csv"}},
        {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "other", "name": ""}},
    ],
    "tokenizer": [
        "datamodules.Bytes", {"class_path": "datamodules.SentencePiece", "init_args": {"vocab_size": 280}},
        {"class_path": "datamodules.SentencePiece", "init_args": {"vocab_size": 5000}},
        {"class_path": "datamodules.SentencePiece", "init_args": {"model_file": "../tokenizer.model"}},
        {"class_path": "datamodules.HuggingFaceTokenizer", "init_args": {"file": "../tokenizer.json"}},
        {"class_path": "datamodules.HuggingFaceTokenizer", "init_args": {"file": "../tokenizer.model"}},
    ],
    "monitor": ["val/loss", "val/perplexity", "val/bits_per_byte", "train/loss", "loss"], "mode": ["min", "max", "x"],
    "name": ["run", None, "Läufe 1", "a/b", "..", ""], "default_root_dir": [None, "runs", "", "configuration.yaml"],
    "cache_dir": ["cache", "~/.cache/llp", "", "configuration.yaml"], "text_key": ["text", "body", ""],
    "model_registry": [None, "somewhere"], "hub_id": ["x/y"], "title_column": ["short_book_title"],
    "text_column": ["text"], "hub_revision": ["main"], "validation_share": [0.05, 0.1, 0.5],
    "test_share": [0.05, 0.1, 0.5], "learning_rate": [1e-3, 1e-8, 1.0, 1e4], "rotary_base": [1e4, 1.0, 2.0],
    "betas": [[0.9, 0.95], [0.0, 0.0]],
}  # fmt: skip
PATHS = {
    "datamodules.TextFiles": ["../text", "../text.txt", "../lines.jsonl", "../splits", "nowhere", "", None],
    "datamodules.WikiText103": ["../wikitext", "../text", "nowhere"],
    "datamodules.PG19": ["../pg19", "../text", "nowhere"],
}
"""None only where it does not mean the Hub."""
ODD = [
    0, -1, 1, 2**31, 2**63, 10**12, 10**30, -(2**63), 1.5, -0.5, 1e308, float("nan"), float("inf"), float("-inf"),
    None, True, False, "", " ", "x", "true", "null", "nan", "1e3", "0x10", "1_000", "ä", "{", "a: b", "- 1", "\udcff",
    [], {}, [1, 2], [None], [[]], {"a": 1}, "llp.LLP", "datamodules.Bytes", "os.system", "nowhere.Class",
    "builtins.print", "lightning.Trainer", {"class_path": "nowhere.Class"}, {"class_path": None},
    {"class_path": "llp.LLP", "init_args": []}, {"class_path": "builtins.dict", "init_args": {"a": 1}},
    {"init_args": 5},
]  # fmt: skip
"""What no type, or no person, expects; and what a type allows but no machine can hold."""
SECTIONS = (
    "model", "data", "trainer", "checkpoint", "guard", "stall", "sample", "certificate", "model.class_path",
    "data.class_path", "model.init_args", "data.init_args", "model.init_args.dimm", "data.init_args.pathh",
    "trainer.max_stepz", "nothing", "model.dim", "trainer.max_steps.more", "model.init_args.dim.more",
    "checkpoint.dirpath", "model.init_args.vocab_size", "data.init_args.seed", "seed_everything", "ckpt_path",
    "init_from", "config",
)  # fmt: skip
"""Whole sections, and names that are not, or should not be, there."""


@dataclass
class Configuration:
    """A configuration file and the flags behind it."""

    file: dict[str, Any]
    flags: list[str]

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


@cache
def defaults(folder: Path, model: str, data: str) -> dict[str, Any]:
    """Every setting by its full name, with its default, as `llp fit --print_config` says."""
    outcome = llp_in(folder, *Configuration(small(model, data), ["--print_config"]).write(folder))
    assert outcome.status == 0, outcome.said
    flat: dict[str, Any] = {}

    def flatten(tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and value and not name.endswith((".tokenizer", ".callbacks", ".logger")):
                flatten(value, f"{name}.")
            else:
                flat[name] = value

    flatten(yaml.safe_load(outcome.out), "")
    for name in ("model.class_path", "data.class_path", "ckpt_path", "init_from"):
        flat.pop(name, None)
    return flat


def usual(name: str, default: Any) -> st.SearchStrategy[Any]:
    """Values that a person could give."""
    last = name.rpartition(".")[2]
    if last in USUAL:
        return st.sampled_from(USUAL[last])
    by_type = {bool: [False, True], int: [1, 2, 4], float: [0.5, 1.0, 0.1, 2.0, 0.0], str: ["word"]}
    return st.sampled_from([default, *by_type.get(type(default), [1, True, None])])


def odd(name: str) -> st.SearchStrategy[Any]:
    """Values that a person should not give; but none that waits for other machines, compiles or asks the Hub."""
    last = name.rpartition(".")[2]
    if last == "num_nodes":
        return st.sampled_from([0, -1, "x", "", None, [], {}, [1, 2]])
    left_out = {"path": (None, "null"), "compile": (True, 1, "true")}.get(last, ())
    return st.sampled_from([value for value in ODD if not any(value is one or value == one for one in left_out)])


@st.composite
def configurations(draw: st.DrawFn, folder: Path) -> Configuration:
    """A configuration with up to six settings changed; `folder` is that of a trial."""
    model, data = draw(st.sampled_from(list(MODELS))), draw(st.sampled_from(list(DATA)))
    file, flags = small(model, data), []
    settings = defaults(folder, model, data)
    if "cache_dir" in DATA[data]:  # a long text, encoded once
        settings = {name: value for name, value in settings.items() if not name.endswith(("tokenizer", "cache_dir"))}
    pools = [sorted(name for name in settings if name.startswith(("model.", "data.")) is own) for own in (True, False)]
    n_usual, n_odd = draw(st.sampled_from([(2, 0), (0, 1), (1, 1), (4, 0), (0, 0), (6, 0), (2, 2)]))
    for is_odd in [False] * n_usual + [True] * n_odd:
        name = draw(st.sampled_from(draw(st.sampled_from(pools))))
        if is_odd and draw(st.integers(0, 5)) == 5:
            name, value = draw(st.sampled_from(SECTIONS)), draw(st.sampled_from(ODD))
        elif is_odd:
            value = draw(odd(name))
        elif name == "data.init_args.path":
            value = draw(st.sampled_from(PATHS[data]))
        else:
            value = draw(usual(name, settings[name]))
        if draw(st.booleans()) or not _put(file, name.split("."), value):
            flags.append(f"--{name}={_as_flag(value)}")
    return Configuration(file, flags)


def _put(tree: Any, keys: list[str], value: Any) -> bool:
    """Put a value into nested mappings; returns whether there is a place for it."""
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
