"""Every command and snippet of the README and of docs/ works as it stands there.

Each page is followed from top to bottom, in a folder with what the pages speak of: text, runs, a small model of
transformers. A code block with a title becomes a file. In Python nothing but sizes is changed. Commands of `llp` run in
this process; `fit` prints the configuration that would run, and comparisons and sweeps print their plan.
"""

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from conftest import write_wikitext
from helpers.in_process import call
from helpers.small_llama import save_llama

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
BLOCK = re.compile(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)

ELSEWHERE = {
    "pip": "README's by .ci/run, extras by test_docs.py",
    "pytest": "this is one",
    "cp": "the shell's",
    "mkdir": "the shell's",
    "tail": "the shell's",
    "source": "the shell's",
    "conda": "the shell's",
    "hf": "needs an account",
    "lm_eval": "tests/harness, tests/export/test_elsewhere.py",
    "tensorboard": "a server",
    "mkdocs": ".ci/run",
    "sbatch": "tests/campaigns/two_nodes.py",
    "scancel": "tests/campaigns/two_nodes.py",
    "srun": "tests/campaigns/two_nodes.py",
    "torchrun": "by hand, with two processes on a CPU",
    "llp consolidate": "tests/training/test_distributed.py",
    "llp runs lightning_logs/sweeps/width": "tests/comparison/test_sweep.py",
}
"""Commands that are not run here, and why or where they are."""

SMALLER = {
    "docs/own_loop.md": {
        "max_steps=10_000, val_check_interval=1000": "max_steps=2, val_check_interval=2, accelerator='cpu'",
        "dim=512, n_layers=6, n_heads=8, segment_len=256": "dim=16, n_layers=2, n_heads=2, segment_len=8",
        "window_len=2048": "window_len=32, tokenizer=__import__('datamodules').Bytes()",
    },
    "docs/own_architecture.md": {"n_sinks=2)  #": "n_sinks=2, max_len=40)  #"},
    "docs/sweeps.md": {"=200": "=4", "n_trials=20": "n_trials=2"},
}
"""What is made smaller in the Python of a page."""

APPENDED = {
    "fit": ["--print_config"],
    "check": ["--max_len", "40"],
    "prepare": ["--data.init_args.tokenizer", "datamodules.Bytes"],
    "compare": ["--plan"],
    "sweep": ["--plan"],
}
LEFT_OUT = {"--workers": 1, "--slurm": 1, "--report": 0, "--time": 0, "--plan": 0}
"""Options of comparisons and sweeps in whose place the plan is printed, and how many words follow each."""
SMALL_WINDOWS = ["--data.init_args.window_len", "32", "--model.init_args.pattern.init_args.segment_len", "8"]
A_FEW_STEPS = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
A_FEW_STEPS += ["--trainer.enable_progress_bar", "false"]


class Block(NamedTuple):
    """A fenced block."""

    language: str
    title: str
    code: str


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))]


def commands(code: str) -> list[list[str]]:
    """The commands of a shell block, as words; what is set before a command is left out."""
    lines = code.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while re.match(r"[A-Z_]+=", command[0]):
                command = command[1:]
            found.append(command)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder in which the pages are followed."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        patch.syspath_prepend(folder)
        write_wikitext(folder / "wikitext-103")
        save_llama(folder / "FOLDER_OR_HUB_ID", bos_token_id=256)
        text = (folder / "wikitext-103/wiki.train.tokens").read_text(encoding="utf-8")
        Path("my_texts").mkdir()
        for name in ("one", "two", "three"):
            Path(f"my_texts/{name}.txt").write_text(text, encoding="utf-8")
        Path("book.txt").write_text("It was the best of times. " * 200, encoding="utf-8")
        Path("prompts.jsonl").write_text('{"prompt": "the cat"}\n', encoding="utf-8")
        tiny = {
            "model": {"class_path": "llp.LLP", "init_args": {"dim": 16, "n_layers": 2, "n_heads": 2, "segment_len": 8}},
            "data": {"class_path": "datamodules.TextFiles", "init_args": {"path": "my_texts", "window_len": 32}},
            "trainer": {"accelerator": "cpu", "max_steps": 2, "val_check_interval": 2, "enable_progress_bar": False},
        }
        tiny["data"]["init_args"]["tokenizer"] = "datamodules.Bytes"
        Path("tiny.yaml").write_text(yaml.safe_dump(tiny), encoding="utf-8")
        assert call("fit", "--config", "tiny.yaml", "--name", "llp-1") == 0
        shutil.copytree("lightning_logs/llp-1", "lightning_logs/quickstart")
        yield folder


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed(page, place, capsys):
    names: dict = {"__name__": "__main__"}
    for block in blocks(page):
        if block.title:
            path = Path(block.title)
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile(smaller(page, block.code), page, "exec"), names)
        elif block.language == "sh":
            for command in commands(block.code):
                follow(page, command, capsys)
        else:
            assert block.language in ("text", "yaml"), block.code
    for words in SMALLER.get(page, {}):
        assert any(words in block.code for block in blocks(page)), words


def smaller(page: str, code: str) -> str:
    for words, fewer in SMALLER.get(page, {}).items():
        code = code.replace(words, fewer)
    return code


def follow(page: str, words: list[str], capsys: pytest.CaptureFixture) -> None:
    """Run a command of `llp`; any other must be one that is known to run elsewhere."""
    if any(f"{shlex.join(words)} ".startswith(f"{known} ") for known in ELSEWHERE):
        return
    assert words[0] == "llp", f"{page}: {words} is not known"
    name, options = words[1], words[2:]
    if name in ("compare", "sweep"):
        options = without(options, LEFT_OUT)
    appended = APPENDED.get(name, [])
    if "FOLDER_OR_HUB_ID" in words:  # it is small, and is trained
        appended = SMALL_WINDOWS + (A_FEW_STEPS if name == "fit" else [])
    if name == "prepare" and "--data.init_args.path" not in words:
        appended = [*appended, "--data.init_args.path", "wikitext-103"]
    options = [word.replace(",lambada_openai", "") for word in options]  # needs the Hub
    status = call(name, *options, *appended)
    out, err = capsys.readouterr()
    assert status == 0, f"{page}: llp {shlex.join([name, *options])}\n{err or out}"


def without(options: list[str], left_out: dict[str, int]) -> list[str]:
    kept = []
    while options:
        word, *options = options
        if word in left_out:
            options = options[left_out[word] :]
        else:
            kept.append(word)
    return kept
