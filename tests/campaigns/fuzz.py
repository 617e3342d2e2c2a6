"""Random configurations, flags and files: each command line runs, or ends without harm.

Harmless are one message and, for input that no person would give, a Python traceback before anything was written or
any metric shown. Failures are a crash by a signal, no end, code in a file that is executed, files elsewhere, a
traceback after files or metrics, and a run that trains nothing.

    python tests/campaigns/fuzz.py configurations [--examples 1000] [--seed 0]
    python tests/campaigns/fuzz.py flags
    python tests/campaigns/fuzz.py files
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
from campaigns.forked import import_all, llp_in
from campaigns.random_command_lines import command_lines
from campaigns.random_configurations import MODELS, Configuration, configurations, small
from campaigns.random_files import File, files
from campaigns.trials import Trial, try_llp
from datamodules.tokenizers import SentencePiece


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


def campaign(
    examples: st.SearchStrategy[Any],
    try_one: Callable[[Any], Trial],
    describe: Callable[[Any], str],
    n_examples: int,
    first_seed: int,
) -> Tally:
    """Try so many examples."""
    tally = Tally()

    @seed(first_seed)
    @settings(
        max_examples=n_examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(examples)
    def examine(example: Any) -> None:
        tally.add(try_one(example), describe(example))

    examine()
    return tally


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder with small texts in every layout, a trained run, and a folder for one trial at a time, `trial`."""
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
            "prompts.jsonl": '{"prompt": "the cat", "id": 1}\n{"prompt": "", "id": [2]}\n',
            "pg19/metadata.csv": "".join(f"{number},Book {number},1900,http://nowhere\n" for number in range(3)),
            "comparison.yaml": yaml.safe_dump(COMPARISON),
        }
        for number, (split, long_name) in enumerate((("train", "train"), ("valid", "validation"), ("test", "test"))):
            contents[f"wikitext/wiki.{split}.tokens"] = "".join(f" {line}" for line in lines)
            contents[f"splits/{split}.txt"] = contents[f"pg19/{long_name}/{number}.txt"] = text
        for name, content in contents.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content, encoding="utf-8")
        (tokenizer := SentencePiece(vocab_size=280)).train(lines)
        tokenizer.save(root)
        _train_fast_tokenizer(lines).save(str(root / "tokenizer.json"))
        (root / "trial").mkdir()
        usual = Configuration(small("llp.LLP", "datamodules.TextFiles"), ["--name=run"])
        outcome = llp_in(root / "trial", *usual.write(root / "trial"))
        assert outcome.status == 0, outcome.said
        (root / "trial/lightning_logs/run").rename(root / "run")
        yield root


def _train_fast_tokenizer(lines: list[str]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


_SMALL = small("llp.LLP", "datamodules.TextFiles")
COMPARISON = {
    "name": "small",
    "shared": {"data": _SMALL["data"], "trainer": _SMALL["trainer"]},
    "arms": {name: {"class_path": name, "init_args": MODELS[name]} for name in ("llp.Transformer", "llp.LLP")},
    "reference": "llp.Transformer",
    **{"steps": 4, "learning_rates": [3.0e-3], "extensions": 0, "seeds": [0, 1]},
    **{"scoring_window_len": 32, "scoring_stride": 16, "slices": False, "assumed_rate": 1.0e9},
    "primary": [["llp.LLP", "llp.Transformer", "windows"]],
}


def empty_trial(root: Path) -> Path:
    """The folder of a trial, with small configurations and a trained run."""
    folder = root / "trial"
    shutil.rmtree(folder)
    folder.mkdir()
    Configuration(small("llp.LLP", "datamodules.TextFiles"), []).write(folder)
    shutil.copytree(root / "run", folder / "run")
    (folder / "pg19.yaml").write_text(yaml.safe_dump(small("llp.LLP", "datamodules.PG19")))
    return folder


def fuzz_configurations(root: Path, n_examples: int, first_seed: int) -> Tally:
    """Random configurations of `llp fit`."""

    def try_one(configuration: Configuration) -> Trial:
        trial = try_llp(configuration.write(empty_trial(root)), root / "trial", root)
        if trial.outcome.status == 0 and trial.steps == 0 and "--print_config" not in configuration.flags:
            trial.fault = "it ended well, and nothing was trained"
        return trial

    def describe(configuration: Configuration) -> str:
        return f"{shlex.join(configuration.flags)}\n{yaml.safe_dump(configuration.file)}"

    return campaign(configurations(root / "trial"), try_one, describe, n_examples, first_seed)


def fuzz_flags(root: Path, n_examples: int, first_seed: int) -> Tally:
    """Random arguments of every subcommand."""
    lines = command_lines(root / "trial")
    return campaign(lines, lambda words: try_llp(words, empty_trial(root), root), shlex.join, n_examples, first_seed)


def fuzz_files(root: Path, n_examples: int, first_seed: int) -> Tally:
    """Random and damaged files of every kind that is opened."""

    def try_one(file: File) -> Trial:
        trial = try_llp(file.write(empty_trial(root)), root / "trial", root)
        if (root / "executed").exists():
            (root / "executed").unlink()
            trial.fault = "code in a file was executed"
        return trial

    def describe(file: File) -> str:
        return f"{shlex.join(file.words)}\n{file.name}: {file.content[:2000]!r}"

    empty_trial(root)
    return campaign(files(root / "trial"), try_one, describe, n_examples, first_seed)


FUZZERS = {"configurations": fuzz_configurations, "flags": fuzz_flags, "files": fuzz_files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=FUZZERS)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with workplace() as root:
        tally = FUZZERS[options.what](root, options.examples, options.seed)
    print(tally)
    raise SystemExit(1 if tally.failures else 0)


if __name__ == "__main__":
    main()
