"""Help that is short, true and quick; completion that a shell can use."""

import inspect
import subprocess
import sys

import pytest

from llp.commands.help import COMMANDS, help_of
from llp.evaluation.context import loss_by_context
from llp.generation.continuation import continue_texts
from llp.harness.evaluation import evaluate_tasks

TRAINER_COMMANDS = [name for name, command in COMMANDS.items() if command.sections]


def flags(name):
    return {option.partition(" ")[0] for option in COMMANDS[name].options if option.startswith("--")}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_and_needs_no_torch(name):
    code = f"import sys; sys.argv = ['llp', '{name}', '--help']; from llp.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code + "; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    *lines, has_torch = done.stdout.splitlines()
    assert has_torch == "False"
    assert len(lines) < 40
    assert max(map(len, lines)) <= 120
    for flag in flags(name):
        assert any(line.startswith(f"  {flag}") for line in lines), flag


@pytest.mark.parametrize("name", TRAINER_COMMANDS)
def test_all_settings_are_shown_on_request_and_promise_nothing_false(run, name):
    status, out, _ = run(name, "--help.all")
    assert status == 0
    for flag in flags(name):
        assert flag in out, flag
    for section in ("--model", "--data", "--trainer", "--checkpoint", "--guard", "--stall", "--sample"):
        assert section in out
    for false in ("hpc", "weights_only"):
        assert false not in out


@pytest.mark.parametrize(
    ("name", "function", "others"),
    [
        ("generate", continue_texts, {"ckpt_path", "name", "accelerator", "precision", "prompt", "output"}),
        ("context", loss_by_context, {"ckpt_path", "name", "accelerator", "precision", "config", "data"}),
        ("evaluate", evaluate_tasks, {"ckpt_path", "name", "accelerator", "precision", "config", "data"}),
    ],
)
def test_own_options_are_those_of_the_function(name, function, others):
    own = set(inspect.signature(function).parameters) - {"model", "data", "write_documents"}
    assert flags(name) == {f"--{option}" for option in own | others}


def test_an_unknown_command_is_answered_with_all_that_there_are():
    code = "import sys; sys.argv = ['llp', 'nonsense']; from llp.__main__ import main; status = main()"
    done = subprocess.run(
        [sys.executable, "-c", code + "; print(status, 'torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2 False\n"
    assert all(name in done.stderr for name in COMMANDS)
    assert "prepare" in help_of("prepare")


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
    status, _, err = run("completion", "fish")
    assert status == 1
    assert "SHELL = fish: name one of bash, zsh, tcsh" in err
