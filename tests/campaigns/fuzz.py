"""Random configurations of `llp fit`: each runs, or ends without harm.

Harmless are one message and, for input that no person would give, a Python traceback before anything was written or
any metric shown. Failures are a crash by a signal, no end, files elsewhere, a traceback after files or metrics, and a
run that trains nothing.

    python tests/campaigns/fuzz.py [--examples 1000] [--seed 0]
"""

import argparse
import gc
import json
import random
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1]))
from campaigns.forked import import_all
from campaigns.random_configurations import Configuration, configurations
from campaigns.trials import Trial, try_llp
from datamodules.tokenizers import SentencePiece
from helpers.texts import byte_level


@dataclass
class Tally:
    """How often each outcome came, the causes of tracebacks, and the first example of each failure."""

    kinds: Counter[str] = field(default_factory=Counter)
    tracebacks: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, trial: Trial, description: str) -> None:
        self.kinds[trial.kind] += 1
        if trial.kind == "traceback":
            self.tracebacks[trial.cause] += 1
        if trial.kind.startswith("wrong") and trial.kind not in self.failures:
            self.failures[trial.kind] = f"{description}\n{trial.outcome.err[-3000:]}{trial.strayed or trial.written}"
            print(f"\n{trial.kind}\n{self.failures[trial.kind]}\n", flush=True)
        if self.kinds.total() % 50 == 0:
            print(f"{self.kinds.total():,} examples: {dict(self.kinds)}", flush=True)

    def __str__(self) -> str:
        counts = (*self.kinds.most_common(), *self.tracebacks.most_common())
        return "\n".join([f"{self.kinds.total():,} examples", *(f"{count:6,}  {kind}" for kind, count in counts)])


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder with small texts in every layout, and a folder for one trial at a time, `trial`."""
    import_all()
    gc.freeze()  # else the collector of each fork goes through everything, and copies the memory
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        words, rng = ["the", "cat", "sat", "on", "a", "mat", "Ünïcode", ",", "."], random.Random(0)
        lines = [" ".join(rng.choices(words, k=10)) + "\n" for _ in range(60)]
        text = "".join(lines)
        contents = {
            "text.txt": text,
            "text/one.txt": text,
            "lines.jsonl": "".join(json.dumps({"text": 2 * line.strip()}) + "\n" for line in lines),
            "pg19/metadata.csv": "".join(f"{number},Book {number},1900,http://nowhere\n" for number in range(3)),
        }
        for number, (split, long_name) in enumerate((("train", "train"), ("valid", "validation"), ("test", "test"))):
            contents[f"wikitext/wiki.{split}.tokens"] = "".join(f" {line}" for line in lines)
            contents[f"splits/{split}.txt"] = contents[f"pg19/{long_name}/{number}.txt"] = text
        for name, content in contents.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content, encoding="utf-8")
        (tokenizer := SentencePiece(vocab_size=280)).train(lines)
        tokenizer.save(root)
        byte_level(lines, 30_000, ["<s>"]).save(str(root / "tokenizer.json"))
        (root / "trial").mkdir()
        yield root


def empty_trial(root: Path) -> Path:
    """The folder of a trial."""
    folder = root / "trial"
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


def fuzz(root: Path, n_examples: int, first_seed: int) -> Tally:
    """Try so many configurations."""
    tally = Tally()

    @seed(first_seed)
    @settings(
        max_examples=n_examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(configurations(root / "trial"))
    def examine(configuration: Configuration) -> None:
        trial = try_llp(configuration.write(empty_trial(root)), root / "trial", root)
        if trial.outcome.status == 0 and trial.steps == 0 and "--print_config" not in configuration.flags:
            trial.fault = "it ended well, and nothing was trained"
        tally.add(trial, f"{shlex.join(configuration.flags)}\n{yaml.safe_dump(configuration.file)}")

    examine()
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with workplace() as root:
        tally = fuzz(root, options.examples, options.seed)
    print(tally)
    raise SystemExit(1 if tally.failures else 0)


if __name__ == "__main__":
    main()
