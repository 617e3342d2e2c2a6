"""Checkpoints on disk: killed anywhere, in order on the disk, the furthest one first, the best one kept."""

import os
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from helpers.damage import flip
from helpers.runs import curves
from llp import atomic_files
from llp.checkpoints import callback, reading
from llp.checkpoints.sharded import write_digests
from llp.errors import SettingError


class Killed(BaseException):
    pass


def kill_at(patch, number):
    """A kill just before one of the calls that change a folder, counted from 0: also amid the removal of a tree."""
    calls = count()
    for name in ("rename", "replace", "unlink", "rmdir", "symlink"):
        original = getattr(os, name)

        def call(*args, original=original, **kwargs):
            if next(calls) == number:
                raise Killed
            return original(*args, **kwargs)

        patch.setattr(os, name, call)


def is_killed(number, act, *args):
    """Whether `act` is killed on its way by the kill of that number; else it has done its work."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, number)
        try:
            act(*args)
        except Killed:
            return True
    return False


PARTS = ("meta.pt", "shard-0", "shard-1")


def make(path, kind, content):
    if kind == "folder":
        path.mkdir()
        for part in PARTS:
            (path / part).write_text(content)
    elif kind == "file":
        path.write_text(content)


def content_of(path):
    """`old` or `new`, if the checkpoint is whole; None if there is none."""
    if not path.exists():
        return None
    if path.is_dir():
        assert sorted(file.name for file in path.iterdir()) == sorted(PARTS)
        (content,) = {file.read_text() for file in path.iterdir()}
        return content
    return path.read_text()


@pytest.mark.parametrize("new", ["file", "folder"])
@pytest.mark.parametrize("old", ["nothing", "file", "folder"])
def test_killed_while_it_takes_its_place_one_whole_checkpoint_is_left(tmp_path, old, new):
    """Whatever `publish` was at, and whatever the `tidy` after it was at when that was killed too."""
    for kills in count():
        folder = tmp_path / f"{kills}"
        folder.mkdir()
        path = folder / "last.ckpt"
        make(path, old, "old")
        make(atomic_files.unfinished(path), new, "new")
        killed = is_killed(kills, atomic_files.publish, path)
        if not killed:
            assert [file.name for file in folder.iterdir()] == ["last.ckpt"]
        if (old, new) == ("file", "file"):  # in one step: there is no moment without one
            assert content_of(path) in ("old", "new")
        for number in count():
            if not is_killed(number, atomic_files.tidy, folder):
                break
        content = content_of(path)
        assert content in (("new", "old" if old != "nothing" else None) if killed else ("new",))
        assert [file.name for file in folder.iterdir()] == ([] if content is None else ["last.ckpt"])
        if not killed:
            break
    assert kills >= (2 if old == "folder" or (old, new) == ("file", "folder") else 1)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(run, work, monkeypatch):
    """All of it: what is synchronised is the very file, and as long as it will be."""
    synced, named = set(), []
    fsync = os.fsync

    def recorded(descriptor):
        state = os.fstat(descriptor)
        synced.add((state.st_ino, state.st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    for original in (os.rename, os.replace):

        def moved(source, target, original=original):
            if str(target).endswith(".ckpt"):
                state = os.stat(source)
                assert (state.st_ino, state.st_size) in synced, target
                named.append(Path(target).name)
            return original(source, target)

        monkeypatch.setattr(os, original.__name__, moved)
    assert run("fit", "--config", "tiny.yaml", "--name", "run")[0] == 0
    assert {"best.ckpt", "last.ckpt"} <= set(named)
    assert len(named) >= 3


@pytest.mark.parametrize(
    ("whole", "older"),
    [
        (atomic_files.whole_file, {"test-1.json": "old"}),
        (partial(atomic_files.whole_file, keeps_older=False), {}),
        (atomic_files.whole_checkpoint, {}),
    ],
    ids=["kept", "replaced", "checkpoint"],
)
def test_a_file_whose_writing_fails_leaves_the_older_one_alone(tmp_path, whole, older):
    path = tmp_path / "test.json"
    path.write_text("old")

    def fail(error):
        with whole(path) as temporary:
            temporary.write_text("half of it")
            assert path.read_text() == "old"
            raise error

    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"test.json": "old"}
    with whole(path) as temporary:
        temporary.write_text("new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"test.json": "new", **older}


def published(monkeypatch):
    """The checkpoints that take their places: name and step."""
    names, publish = [], atomic_files.publish

    def recorded(path):
        publish(path)
        names.append((path.name, torch.load(path, weights_only=True)["global_step"]))

    monkeypatch.setattr(callback, "publish", recorded)
    return names


@pytest.mark.parametrize(("every", "steps"), [(None, [4, 6]), (3, [3, 4, 6])])
def test_the_last_checkpoint_comes_with_validations_and_every_so_many_steps(run, work, monkeypatch, every, steps):
    names = published(monkeypatch)
    status, _, err = run(
        "fit", "--config", "tiny.yaml", "--name", "run", "--checkpoint.every_n_train_steps", every or "null"
    )
    assert status == 0, err
    assert [step for name, step in names if name == "last.ckpt"] == steps  # each written once
    assert {step for name, step in names if name == "best.ckpt"} <= {4, 6}


def test_the_last_checkpoint_comes_where_nothing_is_validated(run, work, monkeypatch):
    names = published(monkeypatch)
    assert run("fit", "--config", "tiny.yaml", "--name", "end", "--trainer.limit_val_batches", 0)[0] == 0
    assert names == [("last.ckpt", 6)]


def test_the_best_is_the_best_by_validation(run, work):
    """With steps so large that the loss rises, too."""
    flags = ("--trainer.val_check_interval", 1, "--model.init_args.warmup_steps", 0)
    flags += ("--model.init_args.learning_rate", 0.3)
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", *flags)
    assert status == 0, err
    losses = dict(curves(work / "lightning_logs/run")["val/loss"])
    best = min(losses, key=lambda step: losses[step])
    assert sorted(losses) == [0, 1, 2, 3, 4, 5]
    saved = torch.load(work / "lightning_logs/run/checkpoints/best.ckpt", weights_only=True)
    assert saved["global_step"] == best + 1
    assert best < 5  # which would be the last one too


# Which one is taken


def write(path, step, written_at=0.0, **content):
    torch.save({"global_step": step, "optimizer_states": [], **content}, path)
    os.utime(path, (written_at, written_at))
    return path


def test_the_furthest_trained_is_first_and_of_equals_the_last_written(tmp_path):
    far = write(tmp_path / "a.ckpt", 30, written_at=100)
    later = write(tmp_path / "last.ckpt", 20, written_at=900)
    earlier = write(tmp_path / "best.ckpt", 20, written_at=800)
    first = write(tmp_path / "z.ckpt", 9, written_at=1000)
    write(tmp_path / ".hidden.ckpt", 99)
    write(tmp_path / "other.pt", 99)
    (tmp_path / "link.ckpt").symlink_to("a.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(far.read_bytes()[:-50])
    torch.save({"no": "step"}, tmp_path / "foreign.ckpt")
    torch.save({"global_step": 90}, tmp_path / "weights.ckpt")  # of a run that can't be resumed from it
    sharded = tmp_path / "sharded.ckpt"
    sharded.mkdir()
    write(sharded / "meta.pt", 25)
    (tmp_path / "empty.ckpt").mkdir()
    assert [*reading.newest_first(tmp_path)] == [far, sharded, later, earlier, first]
    assert [*reading.newest_first(tmp_path / "nowhere")] == []


def test_for_a_checkpoint_that_can_not_be_used_another_is_named(tmp_path):
    missing, cut = tmp_path / "missing.ckpt", tmp_path / "cut.ckpt"
    with pytest.raises(SettingError, match=f"^ckpt_path = {missing}: there is no such file; give the path of a check"):
        reading.read(missing)
    cut.write_bytes(b"")
    with pytest.raises(SettingError, match=r"is damaged or is not a checkpoint \(.+\); give the path of a checkpoint"):
        reading.read(cut)
    foreign = write(tmp_path / "foreign.ckpt", 30)
    whole = write(tmp_path / "whole.ckpt", 20)
    for path, other in ((missing, foreign), (cut, foreign), (foreign, whole)):
        with pytest.raises(SettingError, match=f"; the newest whole one beside it is {other}$"):
            reading.read(path)


@pytest.mark.parametrize("state", ["older", "missing"])
def test_a_run_killed_before_its_last_checkpoint_took_its_place_gets_it(run, trained, state):
    """A comparison waits for `last.ckpt` of the last step, and there is no step left that would write it."""
    last, best = trained / "checkpoints/last.ckpt", trained / "checkpoints/best.ckpt"
    content = torch.load(last, weights_only=True)
    torch.save(content, best)
    if state == "older":
        torch.save({**content, "global_step": content["global_step"] - 1}, last)
    else:
        last.unlink()
    status, _, err = run("fit", "--name", "run", "--ckpt_path", "auto")
    assert status == 0, err
    assert last.read_bytes() == best.read_bytes()
    assert {path.name for path in last.parent.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_unfinished_checkpoints_are_removed_where_a_run_goes_on_and_nowhere_else(run, trained, monkeypatch):
    """A test may run beside the training that is writing just now, in its very folder."""
    leftovers = [atomic_files.unfinished(trained / f"checkpoints/{name}.ckpt") for name in ("last", "best-step=2")]
    for leftover in leftovers:
        leftover.write_bytes(b"half of it")
    monkeypatch.chdir(trained)
    assert run("predict", "--ckpt_path", "checkpoints/best.ckpt")[0] == 0
    assert all(leftover.exists() for leftover in leftovers)
    status, _, err = run("fit", "--ckpt_path", "checkpoints/last.ckpt", "--trainer.max_steps", 7)
    assert status == 0, err
    assert not any(leftover.exists() for leftover in leftovers)


# What it says of itself


def test_one_changed_bit_of_a_weight_is_noticed(tmp_path):
    """torch opens such a file, and trains and scores with another weight."""
    weights = torch.arange(1000.0)
    path = tmp_path / "last.ckpt"
    torch.save({"global_step": 9, "weights": weights}, path)
    older = write(tmp_path / "best.ckpt", 8)
    flip(path, path.read_bytes().index(weights.numpy().tobytes()) + 600)
    assert not torch.equal(torch.load(path)["weights"], weights)
    with pytest.raises(SettingError, match=rf"it is damaged or is not .*is not what was written.*beside it is {older}"):
        reading.read(path)
    assert [*reading.newest_first(tmp_path)] == [older]


@pytest.mark.parametrize("damage", ["flip", "cut", "file", "digest"])
@pytest.mark.parametrize("name", ["__1_0.distcp", ".metadata", "meta.pt"])
def test_one_changed_file_of_a_sharded_checkpoint_is_noticed(tmp_path, name, damage):
    for folder in (tmp_path / "whole.ckpt", tmp_path / "struck.ckpt"):
        folder.mkdir()
        write(folder / "meta.pt", 25)
        for other in ("__0_0.distcp", "__1_0.distcp", "__10_0.distcp", ".metadata"):
            (folder / other).write_bytes(other.encode() * 9)
        for rank in (0, 1, 10):
            write_digests(folder, rank)
        assert folder in reading.newest_first(tmp_path)
    file = tmp_path / "struck.ckpt" / name
    digest = file.with_name(f"{name}.sha256")
    if damage == "flip":
        flip(file, 20)
        os.utime(file, (1, 1))  # in this process it was read before
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        (file if damage == "file" else digest).unlink()
    assert [*reading.newest_first(tmp_path)] == [tmp_path / "whole.ckpt"]


def test_a_checkpoint_names_its_parts(trained):
    """Each parameter's moments under its own name, so that any strategy finds them."""
    saved = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    assert (saved["architecture"], saved["seed"], saved["tokenizer"]["fingerprint"]) == (
        "llp.LLP", 0, "bytes"
    )  # fmt: skip
    (optimizer,) = saved["optimizer_states"]
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    assert sorted(names) == sorted(saved["state_dict"]) == sorted(optimizer["state"])
    for name, state in optimizer["state"].items():
        assert state["exp_avg"].shape == saved["state_dict"][name].shape
        assert state["step"] == 6
    unseen = saved["state_dict"]["decoder.embed.weight"].shape[0] - 1  # byte 256 never occurs: no gradient, no moment
    moments = optimizer["state"]["decoder.embed.weight"]["exp_avg"]
    assert not moments[unseen].any()
    assert moments[ord("e")].any()
    assert saved["WikiText103"] == {"samples_taken": 6 * 4, "batches_taken": 6}
    metrics = saved["callbacks"]["RunMetrics"]
    assert metrics == {"tokens": 6 * 4 * 32, "input_tokens": 6 * 4 * 32, "seconds": metrics["seconds"]}
    assert metrics["seconds"] > 0
    assert saved["callbacks"]["FiniteGuard"] == {"skipped_steps": 0}
