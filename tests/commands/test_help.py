"""Help out of signatures, quick where it needs no model."""

import subprocess
import sys

import pytest

from llp.commands import COMMANDS

OPTIONS = {
    "fit": {"--config", "--name", "--ckpt_path", "--init_from", "--seed_everything", "--trainer.max_steps", "--guard"},
    "generate": {"--ckpt_path", "--name", "--prompt", "--prompts", "--output", "--stop", "--top_p", "--n_samples"},
    "context": {"--ckpt_path", "--config", "--data", "--max_context", "--n_blocks", "--precision", "--accelerator"},
    "runs": {"folder", "--csv"},
    "compare": {"spec", "--plan", "--workers", "--slurm", "--time", "--report", "--retry", "--run", "--root"},
    "check": {"architecture", "--init_args", "--max_len"},
}
"""Of one command of each kind."""


@pytest.mark.parametrize("name", OPTIONS)
def test_help_shows_the_options_and_what_they_are_for(run, name):
    status, text, _ = run(name, "--help")
    assert status == 0
    assert " ".join(COMMANDS[name].split()) in " ".join(text.split())
    _, _, options = text.partition("\n\n")
    lines = [line.strip() for line in options.splitlines()]
    for option in OPTIONS[name]:
        assert any(line.startswith(option) or f", {option}" in line for line in lines), option
    assert "weights_only" not in text
    assert "verbose" not in text.replace("accelerator", "")


def test_training_needs_no_extra(work):
    """The README's first command installs neither transformers, which torchmetrics takes where it is, nor peft."""
    code = "import atexit, sys; sys.argv = ['llp', 'fit', '--config', 'tiny.yaml', '--print_config']"
    code += "; atexit.register(lambda: print({'llp.hf', 'peft', 'lm_eval'} & sys.modules.keys()))"
    code += "; from llp.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "class_path: llp.LLP" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (["--help"], 0, list(COMMANDS.values())),
        (["--version"], 0, ["llp "]),
        (["nonsense"], 2, ["there is no subcommand 'nonsense'; choose fit, validate", *COMMANDS]),
        (["runs", "nowhere"], 1, ["llp runs: error: ", "nowhere"]),
    ],
)
def test_what_needs_no_model_needs_no_torch(words, status, expected):
    code = f"import sys; sys.argv = ['llp', *{words}]; from llp.__main__ import main; status = main()"
    command = [sys.executable, "-c", code + "; print(status, 'torch' in sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{status} False"
    assert all(text in done.stdout + done.stderr for text in expected)
