"""Random configurations, flags and files: each command line runs, or is refused by one message.

Not part of the default tests but for a few examples, since thousands take long:

    python tests/fuzz.py configurations [--examples 2000] [--seed 0]
    python tests/fuzz.py flags [--examples 1000] [--seed 0]
    python tests/fuzz.py files [--examples 1000] [--seed 0]
"""

import argparse
import random
import shlex
import shutil
import tempfile
from collections import Counter, defaultdict
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
from hypothesis.errors import Flaky

from datamodules.tokenizers import SentencePiece
from helpers.random_files import File, files
from helpers.random_flags import command_lines
from helpers.random_settings import MODELS, Configuration, configurations, small
from helpers.trials import Outcome, try_llp, warm_up

MOST_SHRINKS = 25
"""How many smaller examples are tried for a failure."""


class WrongError(AssertionError):
    """An outcome that no user may see."""


@dataclass
class Tally:
    """How often which outcome came, by what was changed; and each failure once, as small as it could be made."""

    kinds: Counter[str] = field(default_factory=Counter)
    by_setting: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, settings: list[str], seconds: float) -> None:
        self.kinds[kind] += 1
        self.seconds += seconds
        for name in settings:
            self.by_setting[name][kind] += 1


def campaign(
    examples: st.SearchStrategy[Any],
    try_one: Callable[[Any], Outcome],
    names: Callable[[Any], list[str]],
    describe: Callable[[Any], str],
    n_examples: int,
    first_seed: int,
) -> Tally:
    """Try so many examples; a failure of a new kind is made as small as it can be, and then the examples go on."""
    tally, remaining, round_number = Tally(), n_examples, 0
    while remaining > 0:
        target: str | None = None
        smallest, n_shrinks = "", 0

        @seed(first_seed * 1000 + round_number)
        @settings(
            max_examples=remaining,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(examples)
        def examine(example: Any) -> None:
            nonlocal target, smallest, n_shrinks, remaining
            if target is None:
                remaining -= 1
            elif (n_shrinks := n_shrinks + 1) > MOST_SHRINKS:
                return
            outcome = try_one(example)
            if target is None:
                tally.add(outcome.kind, names(example), outcome.seconds)
                if sum(tally.kinds.values()) % 20 == 0:
                    print(f"{sum(tally.kinds.values()):,} examples: {dict(tally.kinds)}", flush=True)
            if outcome.kind.startswith("wrong") and outcome.kind not in tally.failures:
                if target is None:
                    target = outcome.kind
                    print(f"\n{target}\n{describe(example)}\n{outcome.err[-1500:]}\nmade smaller:", flush=True)
                if outcome.kind == target:
                    smallest = f"{describe(example)}\n{outcome.err[-3000:]}{''.join(outcome.left)}"
                    raise WrongError(target)

        try:
            examine()
        except (WrongError, Flaky):  # the latter: it does not come each time
            assert target is not None
            tally.failures[target] = smallest
            print(f"\n{target}\n{smallest}\n", flush=True)
        except KeyboardInterrupt:  # so far, then
            break
        else:
            break
        round_number += 1
    return tally


# What is tried


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder with small texts in every layout, a trained run, and a folder for one trial at a time, `trial`."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        words, rng = ["the", "cat", "sat", "on", "a", "mat", "Ünïcode", ",", "."], random.Random(0)
        lines = [" ".join(rng.choices(words, k=10)) + "\n" for _ in range(60)]
        for folder in ("text", "wikitext", "pg19", "splits", "trial"):
            (root / folder).mkdir()
        (root / "text.txt").write_text("".join(lines))
        (root / "text/one.txt").write_text("".join(lines))
        (root / "lines.jsonl").write_text("".join(f'{{"text": "{line.strip()} {line.strip()}"}}\n' for line in lines))
        (root / "prompts.jsonl").write_text('{"prompt": "the cat", "id": 1}\n{"prompt": "", "id": [2]}\n')
        for split in ("train", "valid", "test"):
            (root / f"wikitext/wiki.{split}.tokens").write_text("".join(f" {line}" for line in lines))
            (root / f"splits/{split}.txt").write_text("".join(lines))
        rows = []
        for number, split in enumerate(("train", "validation", "test")):
            (root / "pg19" / split).mkdir()
            (root / f"pg19/{split}/{number}.txt").write_text("".join(lines))
            rows.append(f"{number},Book {number},1900,http://nowhere\n")
        (root / "pg19/metadata.csv").write_text("".join(rows))
        (root / "tokenizer.model").write_bytes(SentencePiece(vocab_size=280).made_from(lines))
        tokens = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokens.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokens.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False)
        tokens.train_from_iterator(lines, trainer)
        tokens.save(str(root / "tokenizer.json"))
        (root / "comparison.yaml").write_text(yaml.safe_dump(COMPARISON))
        usual = Configuration(small("llp.LLP", "datamodules.TextFiles"), ["--name=run"], {})
        warm_up(usual.write(root / "trial"), root / "trial")
        (root / "trial/lightning_logs/run").rename(root / "run")
        yield root


COMPARISON = {
    "name": "small",
    "shared": {
        key: value for key, value in small("llp.LLP", "datamodules.TextFiles").items() if key in ("data", "trainer")
    },
    "arms": {
        "dense": {"class_path": "llp.Transformer", "init_args": MODELS["llp.Transformer"]},
        "llp": {"class_path": "llp.LLP", "init_args": MODELS["llp.LLP"]},
    },
    "reference": "dense",
    "steps": 4,
    "learning_rates": [3.0e-3],
    "extensions": 0,
    "seeds": [0, 1],
    "scoring_window_len": 32,
    "scoring_stride": 16,
    "slices": False,
    "assumed_rate": 1.0e9,
    "primary": [["llp", "dense", "windows"]],
}


def empty_trial(root: Path) -> Path:
    """The folder of a trial, with small configurations and a trained run."""
    folder = root / "trial"
    shutil.rmtree(folder)
    folder.mkdir()
    Configuration(small("llp.LLP", "datamodules.TextFiles"), [], {}).write(folder)
    shutil.copytree(root / "run", folder / "run")
    (folder / "pg19.yaml").write_text(yaml.safe_dump(small("llp.LLP", "datamodules.PG19")))
    return folder


def fuzz_configurations(root: Path, n_examples: int, first_seed: int) -> Tally:
    """Random configurations of `llp fit`."""

    def describe(configuration: Configuration) -> str:
        command = shlex.join(["llp", *configuration.write(empty_trial(root))])
        return f"{command}\n{(root / 'trial/configuration.yaml').read_text()}"

    def try_one(configuration: Configuration) -> Outcome:
        outcome = try_llp(configuration.write(empty_trial(root)), root / "trial", root)
        if outcome.status == 0 and outcome.steps == 0:
            outcome.fault = "it ended well, and nothing was trained"
        return outcome

    return campaign(configurations(), try_one, lambda one: list(one.changed), describe, n_examples, first_seed)


def fuzz_flags(root: Path, n_examples: int, first_seed: int) -> Tally:
    """Random words behind every subcommand."""
    return campaign(
        command_lines(),
        lambda line: try_llp(line.words, empty_trial(root), root),
        lambda line: line.changes,
        lambda line: shlex.join(["llp", *line.words]),
        n_examples,
        first_seed,
    )


def fuzz_files(root: Path, n_examples: int, first_seed: int) -> Tally:
    """Random and damaged files of every kind that is opened."""

    def try_one(file: File) -> Outcome:
        outcome = try_llp(file.write(empty_trial(root)), root / "trial", root)
        if (root / "executed").exists():
            (root / "executed").unlink()
            outcome.fault = "code in a file was executed"
        return outcome

    def describe(file: File) -> str:
        return f"{shlex.join(['llp', *file.words])}\n{file.name}: {file.content[:2000]!r}"

    empty_trial(root)
    return campaign(files(root / "trial"), try_one, lambda file: [file.what], describe, n_examples, first_seed)


FUZZERS = {"configurations": fuzz_configurations, "flags": fuzz_flags, "files": fuzz_files}


def report(tally: Tally) -> str:
    """The outcomes, all together and for each setting that was changed."""
    total = sum(tally.kinds.values())
    lines = [f"{total:,} examples, {tally.seconds / max(1, total):.2f} s each"]
    lines += [f"{number:6,}  {number / total:6.1%}  {kind}" for kind, number in tally.kinds.most_common()]
    lines += ["", f"{'setting':60}     ran refused  others   wrong"]
    for name, kinds in sorted(tally.by_setting.items()):
        wrong = sum(number for kind, number in kinds.items() if kind.startswith("wrong"))
        lines.append(f"{name:60}{kinds['ran']:8}{kinds['refused']:8}{kinds['starts others']:8}{wrong:8}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=FUZZERS)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with workplace() as root:
        tally = FUZZERS[options.what](root, options.examples, options.seed)
    print(report(tally))
    raise SystemExit(1 if tally.failures else 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
