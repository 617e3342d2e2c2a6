"""Command lines that almost mean something: flags misspelt, given twice, without their values, or with odd ones."""

from dataclasses import dataclass

from hypothesis import strategies as st

from llp.commands.completion import command_parser

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
    "completion": ["bash"],
}
"""For each subcommand words that it takes, though not always to the end."""
_COSTLY = ("--time", "--run", "--workers", "--slurm", "--retry", "--report", "--devices", "--num_nodes")
"""Flags that would start other processes, or work for minutes."""
_SETTINGS = [
    "--trainer.max_steps", "--trainer", "--model", "--data", "--model.init_args.dim", "--data.init_args.window_len",
    "--trainer.limit_test_batches", "--sample.top_p", "--certificate.enabled", "--print_config", "--help.all",
    "--config", "-c", "--seed_everything", "--init_from", "--weights_only", "--verbose", "--return_predictions",
]  # fmt: skip
_VALUES = [
    "", " ", "0", "-1", "1", "1e3", "nan", "inf", "null", "true", "x", "{}", "[]", "{", "[1", "a: b", "--", "-", "=",
    "1 2", "ä", "\udcff", "nowhere", "..", "run", "99999999999999999999", "../text.txt", "llp.LLP", "a" * 5000, "cpu",
]  # fmt: skip


@dataclass
class CommandLine:
    """A command line, and what was done to it."""

    words: list[str]
    changes: list[str]


@st.composite
def command_lines(draw: st.DrawFn) -> CommandLine:
    """A command line that its subcommand takes, changed in one to three places."""
    command = draw(st.sampled_from(list(VALID)))
    words = list(VALID[command])
    own = [option for option in command_parser(command).format_help().split() if option.startswith("--")]
    flags = sorted({*own, *_SETTINGS} - set(_COSTLY))
    changes = []
    for _ in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from(["misspelt", "twice", "no value", "odd value", "added", "left out", "order"]))
        place = draw(st.integers(0, len(words) - 1)) if words else 0
        if change in ("added", "odd value") or not words:
            change = change if words else "added"
            flag, value = draw(st.sampled_from(flags)), draw(st.sampled_from(_VALUES))
            if change == "odd value":
                words[place] = value
            elif draw(st.booleans()):
                words.append(f"{flag}={value}")
            else:
                words += [flag, value]
        elif change == "misspelt":
            words[place] = _misspelt(draw, words[place])
        elif change == "twice":
            words += words[place : place + 2]
        elif change == "no value":
            words.append(draw(st.sampled_from(flags)))
        elif change == "left out":
            del words[place]
        else:
            words = draw(st.permutations(words))
        changes.append(f"{command}: {change}")
    if command == "compare" and "--plan" not in words:
        words.append("--plan")
    if draw(st.integers(0, 30)) == 30:
        command = _misspelt(draw, command)
    return CommandLine([command, *words], changes)


def _misspelt(draw: st.DrawFn, word: str) -> str:
    place = draw(st.integers(0, max(0, len(word) - 1)))
    how = draw(st.sampled_from(["less", "more", "other", "case"]))
    before, here, after = word[:place], word[place : place + 1], word[place + 1 :]
    return before + {"less": "", "more": here * 2, "other": "_", "case": here.swapcase()}[how] + after
