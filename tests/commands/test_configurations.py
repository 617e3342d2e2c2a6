"""Configurations: those that are shipped, where they are found, and those that can't be read."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import llp
from helpers.refusals import assert_one_message
from llp.commands.configurations import find_configuration, read_configuration
from llp.commands.trainer_command import TrainerCommand

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
COMPLETE = [[path] for path in sorted(CONFIGS.glob("*.yaml"))]
LARGE = [[CONFIGS / "data/wikitext103.yaml", path] for path in sorted(CONFIGS.glob("paper/*.yaml"))]
MODELS = [
    [path, CONFIGS / "data/wikitext103.yaml", CONFIGS / "trainer/cpu.yaml"]
    for path in CONFIGS.glob("model/*.yaml")
    if path.stem != "pretrained"  # it needs a model's folder: tests/hf
]
DATA = [[CONFIGS / "model/llp.yaml", path, CONFIGS / "trainer/cpu.yaml"] for path in CONFIGS.glob("data/*.yaml")]
TRAINERS = [[CONFIGS / "quickstart.yaml", path] for path in CONFIGS.glob("trainer/*.yaml")]


@pytest.mark.parametrize(
    "files", [*COMPLETE, *LARGE, *sorted(MODELS + DATA)], ids=lambda files: "+".join(f.stem for f in files)
)
def test_every_configuration_builds_its_model(run, work, monkeypatch, files):
    built = []
    monkeypatch.setattr(TrainerCommand, "_run_subcommand", lambda self, subcommand: built.append(self))
    words = (word for path in files for word in ("--config", path))
    status, _, err = run("fit", *words, "--trainer.accelerator", "cpu")
    assert status == 0, err
    command = built[0]
    model, config = command.model, yaml.safe_load(command.command_parser.dump(command.settings))
    assert type(model) is getattr(llp, config["model"]["class_path"].rpartition(".")[2])
    with torch.device("meta"):
        model.configure_model()
    settings = config["data"]["init_args"]
    if "tokenizer" in settings:
        model.geometry.scoring_window(settings["window_len"])  # the model fits its windows
        settings = settings["tokenizer"]["init_args"]
    head = model.decoder.model.lm_head if isinstance(model, llp.PretrainedModel) else model.decoder.head
    assert len(head.weight) == settings["vocab_size"]
    if files in LARGE:  # the paper's
        expected = {"LLP": 200_466_244, "CompressedAttention": 200_996_676}.get(type(model).__name__, 200_472_388)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("files", sorted(TRAINERS), ids=lambda files: files[-1].stem)
def test_every_trainer_part_is_taken(run, work, files):
    status, printed, err = run("fit", *(word for path in files for word in ("--config", path)), "--print_config")
    assert status == 0, err
    assert is_part_of(yaml.safe_load(files[-1].read_text()), yaml.safe_load(printed))


def is_part_of(settings, whole):
    if not isinstance(settings, dict):
        return settings == whole
    return all(key in whole and is_part_of(value, whole[key]) for key, value in settings.items())


def test_files_of_the_working_folder_come_before_those_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/data/pg19.yaml"
    assert read_configuration(name) == yaml.safe_load((ROOT / name).read_text())
    assert find_configuration("configs/slurm/fit.sbatch").is_file()
    assert find_configuration("data/pg19.yaml") == Path("data/pg19.yaml")
    (tmp_path / "configs/data").mkdir(parents=True)
    (tmp_path / name).write_text("data: {class_path: datamodules.MirroredCopy}\n")
    assert read_configuration(name) == {"data": {"class_path": "datamodules.MirroredCopy"}}


@pytest.mark.slow
def test_a_wheel_has_all_of_them(tmp_path):
    """Built from a copy: setuptools leaves its own files beside what it builds."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "source")], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(tmp_path / "source")], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("llp/configs/")}
    assert packed == {f"llp/configs/{path.relative_to(CONFIGS)}" for path in CONFIGS.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"trainer: {max_steps: [\n", "bad.yaml: it is not valid YAML: while parsing a flow node expected the node"),
        (b"- 1\n- 2\n", "bad.yaml: it holds no settings; write them as `section: {setting: value}`"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(run, work, content, message):
    (work / "bad.yaml").write_bytes(content)
    assert_one_message(run("prepare", "--config", "tiny.yaml", "--config=bad.yaml"), f"config = {message}")
    assert {path.name for path in work.iterdir()} == {"bad.yaml", "tiny.yaml", "wikitext"}


def test_a_missing_file_is_named(run, work):
    missing = f"config = missing.yaml: there is no such file in {work}, nor does it come with llp; correct the path"
    assert_one_message(run("test", "--config", "missing.yaml"), missing)


def test_files_are_merged_in_their_order_and_flags_come_last(run, work):
    words = ("--trainer.max_steps", 3, "--config", "tiny.yaml", "--config", "{trainer: {max_steps: 1, max_epochs: 2}}")
    settings = yaml.safe_load(run("fit", *words, "--print_config")[1])["trainer"]
    assert (settings["max_steps"], settings["max_epochs"], settings["val_check_interval"]) == (3, 2, 4)
