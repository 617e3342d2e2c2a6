"""A checkpoint from somebody else: nothing that it holds is executed, whichever command opens it."""

import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as sharding
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from llp.checkpoints import reading
from llp.checkpoints.sharded import check_shards
from llp.errors import SettingError
from llp.loading import load

ROOT = Path(__file__).parents[2]
WHOLE = {
    "architecture": "llp.LLP",
    "hyper_parameters": {},
    "settings_history": [],
    "tokenizer": None,
    "config": None,
    "initialized_from": None,
}
COMMANDS = {
    "fit": ("--ckpt_path",),
    "fit --init_from": ("--config", "tiny.yaml", "--init_from"),
    "test": ("--ckpt_path",),
    "generate": ("--prompt", "a", "--ckpt_path"),
    "consolidate": (),
}


class Strike:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def sharded(folder: Path, value: object = 0.1) -> Path:
    """A sharded checkpoint in torch's layout, with a tensor and a setting of the optimizer."""
    state = {"state_dict": {"weight": torch.arange(6.0)}, "optimizer_0": {"lr": value}}
    sharding.save(state, checkpoint_id=folder, no_dist=True)
    torch.save(WHOLE, folder / "meta.pt")
    return folder


def plant_in_metadata(folder: Path, strike: Strike) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = strike
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_executes_what_a_file_holds(run, work, name):
    mark, command = work / "mark", name.split()[0]
    path = work / "foreign.ckpt"
    if command == "consolidate":
        torch.save({**WHOLE, "extra": Strike(mark)}, sharded(path) / "meta.pt")
    else:
        torch.save({**WHOLE, "state_dict": {}, "extra": Strike(mark)}, path)
    status, _, err = run(command, *COMMANDS[name], path)
    assert status == 1
    assert "it is damaged or is not a checkpoint (it holds other things than tensors and plain values" in err
    assert "Traceback" not in err
    assert not mark.exists()


@pytest.mark.parametrize("place", ["--config", "--ckpt_path"])
def test_no_tag_in_a_configuration_is_executed(run, work, place):
    """In a file of its own or inside of a checkpoint."""
    mark = work / "mark"
    config, path = f"model: !!python/object/apply:os.mkdir [{mark}]\n", work / "foreign"
    if place == "--config":
        path.write_text(config)
    else:
        torch.save({**WHOLE, "state_dict": {}, "config": config}, path)
    status, _, err = run("test", place, path)
    assert status != 0
    assert "python/object/apply" in err
    assert not mark.exists()


def test_torchs_own_metadata_is_opened(tmp_path):
    folder = sharded(tmp_path / "last.ckpt")
    check_shards(folder)
    assert reading.read(folder) == WHOLE


@pytest.mark.parametrize("name", [".metadata", "__0.metadata"])
def test_nothing_in_the_metadata_of_shards_is_executed(tmp_path, name):
    mark, folder = tmp_path / "mark", sharded(tmp_path / "last.ckpt")
    plant_in_metadata(folder, Strike(mark))
    if name != ".metadata":
        (folder / name).write_bytes((folder / ".metadata").read_bytes())
        sharding.save({}, checkpoint_id=folder, no_dist=True)  # the common one is harmless again
    with pytest.raises(SettingError, match=r"it names pathlib\.Path\.touch, which no checkpoint of `llp fit` has"):
        reading.read(folder)
    assert not mark.exists()
    if name == ".metadata":  # as torch itself would have done
        dcp_to_torch_save(folder, tmp_path / "out.pt")
        assert mark.exists()


def test_nothing_in_a_shard_is_executed(tmp_path):
    mark = tmp_path / "mark"
    folder = sharded(tmp_path / "last.ckpt", Strike(mark))
    with pytest.raises(SettingError, match="it holds other things than tensors and plain values"):
        reading.read(folder)
    assert not mark.exists()
    dcp_to_torch_save(folder, tmp_path / "out.pt")  # as torch itself would have done
    assert mark.exists()


def test_an_encoded_value_is_refused(tmp_path):
    """It is not what lies in the file that torch would read."""
    folder = sharded(tmp_path / "last.ckpt")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.transform_descriptors = ["stream.zstd"]
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(SettingError, match="`llp fit` encodes nothing"):
        reading.read(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"hyper_parameters": {"_instantiator": "lightning.pytorch.cli.instantiate_module"}},
            "not written by `llp fit`",
        ),
        ({"architecture": "subprocess.Popen"}, "class_path = subprocess.Popen: it is no TrainingModule"),
        ({"architecture": "os.system"}, "class_path = os.system: it is no TrainingModule"),
    ],
)
def test_a_file_does_not_choose_what_builds_the_model(tmp_path, changes, words):
    torch.save({**WHOLE, "state_dict": {}, **changes}, tmp_path / "foreign.ckpt")
    with pytest.raises(SettingError, match=words):
        load(tmp_path / "foreign.ckpt")


def test_a_file_does_not_choose_what_builds_the_tokenizer():
    stored = {"class_path": "subprocess.Popen", "data": torch.zeros(0, dtype=torch.uint8), "settings": {}}
    with pytest.raises(SettingError, match=r"class_path = subprocess\.Popen: it is no tokenizer"):
        reading.restored_tokenizer(stored)


def test_no_source_trusts_a_file():
    """Pickle, `eval` and unsafe YAML are ruff's to find; torch loads nothing but weights unless it is told to."""
    trusting = re.compile("weights_only=False|allow_pickle=True")
    paths = [path for package in ("llp", "datamodules", "benchmarks") for path in (ROOT / package).rglob("*.py")]
    assert [path for path in paths if trusting.search(path.read_text(encoding="utf-8"))] == []
