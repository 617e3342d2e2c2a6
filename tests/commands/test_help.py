"""Help out of signatures, quick where it needs no model; completion that a shell can use."""

import subprocess
import sys

import pytest

from llp.commands import COMMANDS
from llp.commands.completion import command_parser

OPTIONS = {
    "fit": {"--config", "--name", "--ckpt_path", "--init_from", "--seed_everything", "--trainer.max_steps", "--guard"},
    "validate": {"--ckpt_path", "--model", "--data", "--trainer", "--checkpoint", "--stall"},
    "test": {"--ckpt_path", "--certificate.enabled", "--sample.top_p"},
    "predict": {"--ckpt_path", "--trainer.limit_predict_batches"},
    "generate": {"--ckpt_path", "--name", "--prompt", "--prompts", "--output", "--stop", "--top_p", "--n_samples"},
    "context": {"--ckpt_path", "--config", "--data", "--max_context", "--n_blocks", "--precision", "--accelerator"},
    "evaluate": {"--ckpt_path", "--config", "--data", "--tasks", "--limit", "--n_shots", "--include_path"},
    "runs": {"folder", "--csv"},
    "compare": {"spec", "--plan", "--workers", "--slurm", "--time", "--report", "--retry", "--run", "--root"},
    "prepare": {"--config", "--data"},
    "check": {"architecture", "--init_args", "--max_len"},
    "export": {"--ckpt_path", "--name", "--output", "--dtype"},
    "consolidate": {"folder"},
    "completion": {"{bash,zsh,tcsh}"},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_options_and_what_they_are_for(name):
    text = command_parser(name).format_help()
    assert " ".join(COMMANDS[name].split()) in " ".join(text.split())
    _, _, options = text.partition("\n\n")
    lines = [line.strip() for line in options.splitlines()]
    for option in OPTIONS[name]:
        assert any(line.startswith(option) or f", {option}" in line for line in lines), option
    assert "weights_only" not in text
    assert "verbose" not in text.replace("accelerator", "")


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


def test_a_shell_completes_commands_and_settings(run, tmp_path):
    status, script, err = run("completion", "bash")
    assert status == 0, err
    (tmp_path / "llp.bash").write_text(script)
    (tmp_path / "try.bash").write_text(
        "source llp.bash\n"
        "function_of=$(complete -p llp | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
        'complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n'
        '  $function_of llp "${@: -1}" "${@: -2:1}"; echo "${COMPREPLY[@]}"; }\n'
        "complete_words llp ge\n"
        "complete_words llp fit --trainer.max_st\n"
        "complete_words llp generate --temp\n"
    )
    done = subprocess.run(["bash", "try.bash"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["generate", "--trainer.max_steps", "--temperature"]
