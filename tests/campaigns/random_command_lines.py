"""Command lines that almost mean something: flags misspelt, given twice, without their values, or with odd ones."""

import re
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from campaigns.forked import llp_in

VALID: dict[str, list[str]] = {
    "fit": ["--config", "configuration.yaml", "--name", "other"],
    "validate": ["--ckpt_path", "run"],
    "test": ["--ckpt_path", "run"],
    "predict": ["--ckpt_path", "run"],
    "generate": ["--ckpt_path", "run", "--prompt", "the cat", "--max_tokens", "3"],
    "context": ["--ckpt_path", "run", "--n_blocks", "2", "--block_len", "8", "--max_context", "16"],
    "runs": [".."],
    "compare": ["../comparison.yaml", "--plan"],
    "prepare": ["--config", "configuration.yaml"],
    "consolidate": ["run/checkpoints/last.ckpt"],
}
"""Words that each subcommand takes, though not always to the end."""
_COSTLY = {"--time", "--run", "--workers", "--slurm", "--retry", "--report", "--devices", "--num_nodes"}
"""Flags that would start other processes, or work for minutes."""
_SETTINGS = {
    "--trainer.max_steps", "--trainer", "--model", "--data", "--model.init_args.dim", "--data.init_args.window_len",
    "--trainer.limit_test_batches", "--sample.top_p", "--certificate.enabled", "--print_config", "--help.all",
    "--config", "-c", "--seed_everything", "--init_from", "--weights_only", "--verbose", "--return_predictions",
}  # fmt: skip
_VALUES = [
    "", " ", "0", "-1", "1", "1e3", "nan", "inf", "null", "true", "x", "{}", "[]", "{", "[1", "a: b", "--", "-", "=",
    "1 2", "ä", "\udcff", "nowhere", "..", "run", "99999999999999999999", "../text.txt", "llp.LLP", "a" * 5000, "cpu",
]  # fmt: skip


@cache
def _flags(folder: Path, command: str) -> list[str]:
    own = re.findall(r"--[a-z_]+", llp_in(folder, command, "--help").out)
    return sorted({*own, *_SETTINGS} - _COSTLY)


@st.composite
def command_lines(draw: st.DrawFn, folder: Path) -> list[str]:
    """A command line that its subcommand takes, changed in one to three places; `folder` is that of a trial."""
    command = draw(st.sampled_from(list(VALID)))
    words, flags = list(VALID[command]), _flags(folder, command)
    for _ in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from(["misspelt", "twice", "no value", "odd value", "added", "left out", "order"]))
        place = draw(st.integers(0, max(0, len(words) - 1)))
        if change == "added" or not words:
            flag, value = draw(st.sampled_from(flags)), draw(st.sampled_from(_VALUES))
            words += [f"{flag}={value}"] if draw(st.booleans()) else [flag, value]
        elif change == "odd value":
            words[place] = draw(st.sampled_from(_VALUES))
        elif change == "misspelt":
            words[place] = _misspelt(draw, words[place])
        elif change == "twice":
            words += words[place : place + 2]
        elif change == "no value":
            words.append(draw(st.sampled_from(flags)))
        elif change == "left out":
            del words[place]
        else:
            words = list(draw(st.permutations(words)))
    if command == "compare" and "--plan" not in words:
        words.append("--plan")
    return [_misspelt(draw, command) if draw(st.integers(0, 30)) == 30 else command, *words]


def _misspelt(draw: st.DrawFn, word: str) -> str:
    place = draw(st.integers(0, max(0, len(word) - 1)))
    how = draw(st.sampled_from(["less", "more", "other", "case"]))
    before, here, after = word[:place], word[place : place + 1], word[place + 1 :]
    return before + {"less": "", "more": here * 2, "other": "_", "case": here.swapcase()}[how] + after
