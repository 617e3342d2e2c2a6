"""A configuration that can't be read: one message that names the file, before anything is done."""

import os

import pytest

from helpers.refusals import assert_one_message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"trainer: {max_steps: [\n", "bad.yaml: it is not valid YAML; correct line 2, column 1: expected the node"),
        (b"trainer:\n\tmax_steps: 1\n", "bad.yaml: it is not valid YAML; correct line 2, column 1: found character"),
        (b"a: !!python/object:os.system x\n", "bad.yaml: it is not valid YAML; correct line 1, column 4: could not"),
        (b"a: 2026-13-01\n", "bad.yaml: it is not valid YAML; correct month must be in 1..12"),
        (b"a: " + b"[" * 1000 + b"\n", "bad.yaml: it is not valid YAML; correct maximum recursion depth exceeded"),
        (b"a: \x00\n", "bad.yaml: it is not valid YAML; correct unacceptable character #x0000"),
        (b"model: {}\nname: caf\xe9\n", "bad.yaml: it is not UTF-8 (see line 2); save it in that encoding"),
        (b"config: 0\n", "bad.yaml: it names another configuration, as `config`, that is no file's name"),
        (b"- 1\n- 2\n", "bad.yaml: it holds no settings but a list; write it as `section: {setting: value}`"),
        (b"hello\n", "bad.yaml: it holds no settings but a str;"),
        (b"# nothing\n", "bad.yaml: it is empty; name a file with settings, or leave it out"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("subcommand", ["fit", "prepare", "context"])
def test_a_file_that_holds_no_settings_is_named(run, work, subcommand, content, message):
    (work / "bad.yaml").write_bytes(content)
    for flag in (("--config", "bad.yaml"), ("--config=bad.yaml",), ("-c", "bad.yaml")):
        assert_one_message(run(subcommand, "--config", "tiny.yaml", *flag), f"config = {message}")
    assert {path.name for path in work.iterdir()} == {"bad.yaml", "tiny.yaml", "wikitext"}


def test_a_folder_and_a_missing_file_are_named(run, work):
    (work / "folder.yaml").mkdir()
    assert_one_message(run("fit", "--config", "folder.yaml"), "config = folder.yaml: it is a folder; name a file in it")
    missing = f"config = missing.yaml: there is no such file in {work}; correct the path"
    assert_one_message(run("test", "--config", "missing.yaml"), missing)


def test_a_file_that_may_not_be_read_is_named(run, work, monkeypatch):
    if os.geteuid() == 0:  # who may read everything
        monkeypatch.setattr("pathlib.Path.read_text", _denied)
    (work / "tiny.yaml").chmod(0)
    assert_one_message(run("fit", "--config", "tiny.yaml"), "config = tiny.yaml: it can't be read: Permission denied")


def _denied(path, **_):
    raise PermissionError(13, "Permission denied", str(path))


def test_settings_may_stand_on_the_command_line_in_place_of_a_file(run, work):
    status, _, err = run("fit", "--config", "tiny.yaml", "--config", "{trainer: {max_steps: 1}}", "--name", "run")
    assert status == 0, err
