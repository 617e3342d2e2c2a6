"""What a pretrained model loses when its attention is cut: one record for each arm and document, then a report.

    python benchmarks/attention_cut.py results/pretrained --model FOLDER --data FOLDER     # what is missing
    python benchmarks/attention_cut.py results/pretrained --report                         # from the records alone
    python benchmarks/attention_cut.py results/pretrained --model … --data … --repeat llp_256 pg19/test/345.txt

The folder holds `spec.yaml`. `--model` is the model as a folder of transformers; `--data` has `pg19/` and `wikitext/`.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from attention_cut_report import BIN, DISTANCES, SETTLED, write
from llp.decoder import patterns
from llp.decoder.loss import linear_cross_entropy
from llp.training.run_record import git_commit

Row = dict[str, Any]
OFFSETS = (64, 128, 256, 384, 512, 768)
"""Segment lengths for the loss by offset, in sixteenths of a segment, from position `SETTLED` on."""


def main() -> None:
    """Read what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="only write the report")
    parser.add_argument("--repeat", nargs=2, metavar=("ARM", "DOCUMENT"), help="print one record anew")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    spec = yaml.safe_load((options.folder / "spec.yaml").read_text(encoding="utf-8"))
    if options.repeat:
        print(json.dumps(Reader(spec, options.model, options.data).read(*options.repeat, "main")))
        return
    if not options.report:
        read_missing(spec, options)
    write(spec, options.folder)


def jobs(spec: Row) -> Iterator[tuple[str, str, str]]:
    """Part, document and arm of every record: first what the named contrasts need, on all documents."""
    named = {"dense", *chain.from_iterable(spec["contrasts"])}
    for document in spec["documents"]:
        yield from (("main", document, arm) for arm in spec["arms"] if arm in named)
    for document in spec["long"]["documents"]:
        yield from (("long", document, arm) for arm in spec["long"]["arms"])
    for document in spec["documents"]:
        yield from (("main", document, arm) for arm in spec["arms"] if arm not in named)


def read_missing(spec: Row, options: argparse.Namespace) -> None:
    """Append the records that are missing, a line each."""
    path = options.folder / "records.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    done = {(row["part"], row["document"], row["arm"]) for row in map(json.loads, lines)}
    missing = [job for job in jobs(spec) if job not in done]
    reader = Reader(spec, options.model, options.data) if missing else None
    for number, (part, document, arm) in enumerate(missing):
        assert reader is not None
        row = reader.read(arm, document, part)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        loss = row["nats"] / row["tokens"]
        print(f"{number + 1}/{len(missing)} {part} {document} {arm}: {loss:.4f}, {row['seconds']:.0f} s", flush=True)


class Reader:
    """The model and its tokenizer.

    Args:
        spec: The specification.
        model: The folder of the model.
        data: The folder of the texts.
    """

    def __init__(self, spec: Row, model: Path, data: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.spec, self.data = spec, data
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)

    def read(self, arm: str, document: str, part: str) -> Row:
        """The record of one arm on one document."""
        from llp.hf import set_attention

        settings = {"keep_first": self.spec["keep_first"], "move_first": True, **self.spec["arms"][arm]}
        n = self.spec["tokens"] if part == "main" else self.spec["long"]["tokens"]
        tokens = self.tokenizer(text_of(self.data, document), add_special_tokens=False).input_ids[:n]
        n_layers, every = self.model.config.num_hidden_layers, settings.pop("dense_every", None)
        layers = [number for number in range(n_layers) if every is None or (number + 1) % every]
        first = {name: settings.pop(name) for name in ("keep_first", "move_first")}
        name = settings.pop("pattern", None)
        set_attention(self.model, None)
        if name is not None:
            set_attention(self.model, getattr(patterns, name)(**settings), layers=layers, **first)
        started = time.perf_counter()
        nats = self.losses([self.spec["start_token"], *tokens])
        row: Row = {"part": part, "document": document, "arm": arm, "tokens": len(tokens)}
        row |= {"nats": float(nats.sum()), "by_position": sums(nats, np.arange(len(nats)) // BIN)}
        if part == "main":
            row |= {"by_offset": by_offset(nats), "by_distance": self.by_distance(tokens, nats)}
        return row | {
            "seconds": round(time.perf_counter() - started, 1),
            "threads": torch.get_num_threads(),
            "commit": git_commit(),
        }

    @torch.inference_mode()
    def losses(self, tokens: list[int]) -> np.ndarray:
        """The loss of each token but the first, in nats: (n,) in float64."""
        inputs, targets = torch.tensor([tokens[:-1]]), torch.tensor([tokens[1:]])
        states: Tensor = self.model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
        return linear_cross_entropy(states, self.model.lm_head.weight, None, targets).each[0].double().numpy()

    def by_distance(self, tokens: list[int], nats: np.ndarray) -> dict[str, list[float]]:
        """Nats and number of words of four letters or more, by the distance to the word's last occurrence.

        The first entry is for words without one, the others are for distances below each of `DISTANCES` and beyond.
        """
        pieces = [self.tokenizer.decode([token]) for token in tokens]
        begin = [number for number, piece in enumerate(pieces) if number and not piece[:1].isalnum()]
        starts = [0, *begin, len(pieces)]
        last: dict[str, int] = {}
        bins, losses = [], []
        for start, stop in pairwise(starts):
            word = "".join(pieces[start:stop]).strip()
            if not re.fullmatch(r"[^\W\d_]{4,}", word):
                continue
            if start >= SETTLED:
                distance = start - last[word] if word in last else None
                bins.append(0 if distance is None else 1 + int(np.searchsorted(DISTANCES, distance, side="right")))
                losses.append(nats[start:stop].sum())
            last[word] = start
        n_bins = len(DISTANCES) + 2
        counts = np.bincount(bins, minlength=n_bins)
        return {"nats": np.bincount(bins, losses, n_bins).tolist(), "words": counts.tolist()}


def sums(nats: np.ndarray, bins: np.ndarray) -> list[float]:
    """The sum of the losses in each bin."""
    return [float(one) for one in np.bincount(bins, nats)]


def by_offset(nats: np.ndarray) -> dict[str, list[float]]:
    """For each segment length the mean loss in each sixteenth of a segment, from position `SETTLED` on."""
    positions = np.arange(len(nats))[SETTLED:]
    found = {}
    for length in OFFSETS:
        bins = positions % length * 16 // length
        found[str(length)] = (np.bincount(bins, nats[SETTLED:]) / np.bincount(bins)).tolist()
    return found


def text_of(data: Path, document: str) -> str:
    """A book, or the article of a file of WikiText with this rank by length: `wiki.test.raw#0` is the longest."""
    name, _, rank = document.partition("#")
    text = (data / name).read_text(encoding="utf-8")
    if not rank:
        return text
    heads = [match.start() for match in re.finditer(r"^ = [^=\n]+ = $", text, flags=re.MULTILINE)]
    articles = [text[start:stop] for start, stop in zip(heads, [*heads[1:], len(text)], strict=True)]
    return sorted(articles, key=len, reverse=True)[int(rank)]


if __name__ == "__main__":
    main()
