"""Records of runs that never ran, with losses drawn from known means and deviations; and a comparison that runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llp.comparison.plan import Arm, Plan
from llp.comparison.records import Failure, Record, Timing
from llp.comparison.spec import Specification

DOCUMENT_BYTES = (9000, 4000, 6000, 2000, 5000)
STEPS, BATCH, FLOPS = 100, 8, 600_000_000
RATES = (1e-3, 3e-3, 1e-2)
LEVELS = {"dense": 1.9, "window": 1.95, "llp": 2.0}
CLASSES = {"dense": "llp.Transformer", "window": "llp.SlidingWindow", "llp": "llp.LLP"}


class Losses:
    """Bits per byte of arm, seed and document: the arm's level and effects with the given standard deviations.

    Args:
        levels: By arm.
        seed: Of the generator.
        own: Of each run by itself.
        order: Of each seed, shared by all arms: the windows that it took.
        text: Of each document, shared by all arms and seeds.
        taste: Of each arm on each document, shared by its seeds.
        sizes: The documents' bytes.
    """

    def __init__(
        self,
        levels: Mapping[str, float],
        seed: int = 0,
        own: float = 0.002,
        order: float = 0.0,
        text: float = 0.1,
        taste: float = 0.0,
        sizes: Sequence[int] = DOCUMENT_BYTES,
    ) -> None:
        self.levels, self.own, self.sizes = levels, own, sizes
        self.random = np.random.default_rng(seed)
        self.orders = order * self.random.standard_normal(10_000)
        self.texts = text * self.random.standard_normal(len(sizes))
        self.tastes = {arm: taste * self.random.standard_normal(len(sizes)) for arm in levels}

    def draw(self, arm: str, seed: int) -> np.ndarray:
        """(D,) bits per byte of one run."""
        run = self.own * self.random.standard_normal()
        return self.levels[arm] + run + self.orders[seed] + self.texts + self.tastes[arm]


def text_rows(bits: Sequence[float], sizes: Sequence[int] = DOCUMENT_BYTES) -> list[dict[str, Any]]:
    """The rows of a text's test: the whole, then each document."""
    documents = []
    for number, (bits_per_byte, size) in enumerate(zip(bits, sizes, strict=True)):
        counts = {"tokens": size // 2, "words": size // 5, "plain_words": size // 5, "bytes": size}
        documents.append({"document": f"book {number}", **counts, "nats": bits_per_byte * size * math.log(2)})
    whole = {key: math.fsum(row[key] for row in documents) for key in ("tokens", "words", "plain_words", "bytes")}
    total = {"document": None, **{k: int(v) for k, v in whole.items()}, "nats": math.fsum(r["nats"] for r in documents)}
    return [
        {
            **row,
            "loss": row["nats"] / row["tokens"],
            "perplexity": math.exp(row["nats"] / row["tokens"]),
            "word_perplexity": math.exp(row["nats"] / row["words"]),
            "bits_per_byte": row["nats"] / row["bytes"] / math.log(2),
        }
        for row in [total, *documents]
    ]


def protocol(**changes: Any) -> dict[str, Any]:
    return {
        "window_len": 512,
        "stride": 128,
        "data_fingerprint": "data",
        "tokenizer_fingerprint": "tokenizer",
        "complete": True,
        "context_least": 384,
        "context_mean": 447.5,
        "context_greatest": 512,
        "word_count": "words",
        "official_words": None,
        "certificate": {"causal": True},
        "precision": "32-true",
        **changes,
    }


def slices(level: float, own: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Loss by position and on recall tokens: better with more context, worse from far away."""
    bounds = [2**k for k in range(10)]
    parts = [
        {"first": first, "last": 2 * first - 1, "tokens": 10 * first, "nats": 10 * first * (level + 1 / first)}
        for first in bounds
    ]
    recall = [{**part, "nats": part["tokens"] * level * (0.2 + 0.05 * k)} for k, part in enumerate(parts)]
    return {"position": parts, "recall": recall, "other": {"tokens": 5000, "nats": 5000 * 1.2 * level}, **own}


def record(
    arm: str = "dense",
    seed: int = 0,
    bits: Sequence[float] | None = None,
    learning_rate: float = 3e-3,
    validation: float = 2.5,
    steps: int = STEPS,
    sizes: Sequence[int] = DOCUMENT_BYTES,
    **changes: Any,
) -> Record:
    """One run's record; a test with `bits` per byte of the documents, none if that is None."""
    name = f"{arm}-lr{learning_rate:g}-steps{steps}"
    model = {"vocab_size": 1000, "dim": 64, "n_layers": 4, "n_heads": 2, "learning_rate": learning_rate}
    class_path = CLASSES.get(arm.partition(".")[0], "llp.Transformer")
    curve = [
        {"step": steps * part // 5, "loss": validation + 1 / part - 0.2, "bits_per_byte": (validation + 1 / part) / 2}
        for part in range(1, 6)
    ]
    made = Record(
        run=f"{name}-s{seed}",
        arm=arm,
        class_path=class_path,
        seed=seed,
        learning_rate=learning_rate,
        steps=steps,
        settings={
            "model": {"class_path": class_path, "init_args": model},
            "data": {"init_args": {"window_len": 512, "batch_size": BATCH}},
        },
        commands=[f"llp fit --config {name}.yaml --seed_everything {seed}", f"llp test --config {name}.yaml"],
        parameters=260_000,
        pairs_per_window=100_000,
        flops_per_window=FLOPS,
        positions_per_window=512,
        windows=steps * BATCH,
        curve=curve,
        test=None if bits is None else {"protocol": protocol(), "rows": text_rows(bits, sizes)},
        slices=None if bits is None else slices(float(np.mean(bits))),
        hashes={
            "initial_weights": f"weights of seed {seed}",
            "training_windows": f"{steps * BATCH} windows of seed {seed}",
            **{f"first_{2**k}_batches": f"{2**k} batches of seed {seed}" for k in range(steps.bit_length())},
            "data": "data",
            "tokenizer": "tokenizer",
            "final_weights": f"{name}-s{seed}",
        },
        commit="0123456789abcdef0123456789abcdef01234567",
        versions={"torch": "2.9"},
        device="cpu",
    )
    return replace(made, **changes)


def finals(losses: Losses, arm: str, seeds: Iterable[int], **changes: Any) -> list[Record]:
    """Tested runs of an arm."""
    return [record(arm, seed, losses.draw(arm, seed), sizes=losses.sizes, **changes) for seed in seeds]


def trials(arm: str, losses: Sequence[float] = (2.7, 2.5, 2.8), rates: Sequence[float] = RATES) -> list[Record]:
    """The choice of an arm's learning rate by seed 100; by default, the second is the best one."""
    return [record(arm, 100, None, rate, validation=loss) for rate, loss in zip(rates, losses, strict=True)]


def records(levels: Mapping[str, float] = LEVELS, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Record]:
    """The records, by run, of a finished comparison of arms with these bits per byte; the first is the reference."""
    losses, made = Losses(levels), list[Record]()
    for number, arm in enumerate(levels):
        made += trials(arm) + finals(losses, arm, seeds if number else range(5))
    return {one.run: one for one in made}


def study(
    records: Mapping[str, Record],
    arms: Iterable[str] = LEVELS,
    failed: Mapping[str, Failure] = {},
    seconds: Mapping[str, float] | None = None,
    flops: Mapping[str, int] = {},
    **changes: Any,
) -> Plan:
    """What `llp compare` makes of records.

    Args:
        records: By the names of their runs.
        arms: Their names, the reference first.
        failed: The runs that failed.
        seconds: Of a step, by arm; a tenth of a second by default.
        flops: Of a training window, where it isn't `FLOPS`.
        **changes: Of the specification.
    """
    arms = list(arms)
    spec = Specification(
        **{
            "name": "synthetic",
            "description": "Runs that never ran.",
            "arms": {arm: {"class_path": CLASSES.get(arm, "llp.Transformer")} for arm in arms},
            "reference": arms[0],
            "steps": STEPS,
            "learning_rates": list(RATES),
            "extensions": 0,
            "learning_rate_seeds": [100],
            "noise_seeds": list(range(5)),
            "primary": [(arm, arms[0], "windows") for arm in arms[1:]],
            **changes,
        }
    )
    sizes = {arm: Arm(260_000, 100_000, flops.get(arm, FLOPS), 512, BATCH) for arm in arms}
    seconds = dict.fromkeys(arms, 0.1) if seconds is None else seconds
    timing = Timing(seconds, {"device": "cpu"}) if seconds else None
    return Plan(spec, sizes, records, failed, timing)


def changed(records: Mapping[str, Record], arm: str, seeds: Iterable[int], **changes: Any) -> dict[str, Record]:
    """The records with changes to an arm's tested runs; those of dictionaries are merged."""
    own = {f"{arm}-lr0.003-steps{STEPS}-s{seed}" for seed in seeds}
    new = {name: replace(records[name], **{
        key: {**getattr(records[name], key), **value} if isinstance(value, dict) else value
        for key, value in changes.items()
    }) for name in own}  # fmt: skip
    return {**records, **new}


def write_specification(folder: Path, text: str, window_len: int, **settings: Any) -> None:
    """Write `spec.yaml` of a comparison that runs: small models on the bytes of a text in the folder."""
    data = {"path": str(folder / text), "cache_dir": str(folder / "cache"), "tokenizer": "datamodules.Bytes"}
    data |= {"window_len": window_len, "batch_size": 4}
    shared = {
        "model": {"init_args": {"dim": 16, "n_layers": 2, "n_heads": 2}},
        "data": {"class_path": "datamodules.TextFiles", "init_args": data},
        "trainer": {"accelerator": "cpu", "devices": 1, "limit_val_batches": 2},
    }
    windows = {"scoring_window_len": window_len, "scoring_stride": window_len // 2}
    spec = {"name": "tiny", "shared": shared, "extensions": 0, **windows, **settings}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
