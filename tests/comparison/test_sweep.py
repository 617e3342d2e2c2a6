"""Sweeps: which runs a grid and a random search have, and a whole sweep in this process."""

import math
from pathlib import Path

import pytest
import yaml

from helpers.in_process import in_this_process
from llp.comparison.sweep import Sweep
from llp.comparison.workers import Workers
from llp.errors import SettingError

RATE, DIM = "model.init_args.learning_rate", "model.init_args.dim"


def test_a_grid_by_hand():
    shared = {"model": {"class_path": "llp.LLP", "init_args": {"dim": 8, "n_layers": 2}}}
    sweep = Sweep("x", {RATE: [0.001, 1e-2], "model.class_path": ["llp.LLP", "llp.Transformer"], DIM: [16]}, shared)
    assert list(sweep.runs) == [
        "learning_rate=0.001,model=LLP,dim=16",
        "learning_rate=0.001,model=Transformer,dim=16",
        "learning_rate=0.01,model=LLP,dim=16",
        "learning_rate=0.01,model=Transformer,dim=16",
    ]
    init_args = {"dim": 16, "n_layers": 2, "learning_rate": 0.001}
    assert sweep.configuration("learning_rate=0.001,model=Transformer,dim=16") == {
        "model": {"class_path": "llp.Transformer", "init_args": init_args}
    }


def test_a_random_search_draws_from_its_ranges_and_more_samples_begin_alike():
    settings = {RATE: {"low": "1e-4", "high": 0.1, "log": True}, DIM: {"low": 2, "high": 4}, "depth": [1, 2]}
    few, many = ([*Sweep("x", settings, samples=samples, seed=7).runs.values()] for samples in (5, 500))
    assert many[:5] == few
    rates = [run[RATE] for run in many]
    assert all(1e-4 <= rate <= 0.1 for rate in rates)
    assert sum(rate < math.sqrt(1e-4 * 0.1) for rate in rates) / len(rates) == pytest.approx(0.5, abs=0.1)
    for name, values in ((DIM, {2, 3, 4}), ("depth", {1, 2})):
        drawn = [run[name] for run in many]
        assert set(drawn) == values
        assert min(map(drawn.count, values)) > 0.8 * len(drawn) / len(values)
    assert [*Sweep("x", settings, samples=5, seed=8).runs.values()] != few


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {RATE: 0.1}}, "give a list of values"),
        ({"settings": {RATE: {"low": 1, "high": 2}}}, "set samples"),
        ({"settings": {RATE: {"low": 2, "high": 1}}, "samples": 3}, "low below high"),
        ({"settings": {RATE: {"low": 0, "high": 1, "log": True}}, "samples": 3}, "above 0"),
        ({"settings": {"name": ["a"]}}, "llp sweep sets it"),
        ({"settings": {RATE: [0.1, 0.1]}}, "two of their values are the same"),
    ],
)
def test_what_a_sweep_refuses(changes, message):
    with pytest.raises(SettingError, match=message):
        _ = Sweep(**{"name": "x", "settings": {RATE: [0.1]}, **changes}).runs


def specification(settings, **changes):
    """A sweep of the tiny run."""
    shared = {"model": {"class_path": "llp.LLP"}}
    sweep = {"name": "tiny", "base": ["tiny.yaml"], "shared": shared, "settings": settings, **changes}
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))


def test_a_sweep_from_end_to_end(run, work, monkeypatch):
    """Of two runs one can't be built; it stops not the other, and is left alone the next time."""
    monkeypatch.setattr(Workers, "_start", in_this_process)
    specification({DIM: [15, 8]})
    status, out, err = run("sweep", "sweep.yaml")
    assert status == 1
    assert "dim=15 failed (status 1): llp fit: error: dim = 15" in err
    assert "runs = dim=15: failed; see lightning_logs/sweeps/tiny/logs" in err
    place = work / "lightning_logs/sweeps/tiny"
    assert {path.name for path in (place / "lightning_logs").iterdir()} == {"dim=15", "dim=8"}
    assert "dim = 15" in (place / "logs/dim=15.log").read_text()
    assert not list(place.rglob("test.json"))  # chosen on validation
    monkeypatch.setattr(Workers, "_start", None)  # nothing is started again
    assert run("sweep", "sweep.yaml")[:2] == (1, out)
    assert run("runs", "lightning_logs/sweeps/tiny")[1] == out
    status, out, _ = run("sweep", "sweep.yaml", "--plan")
    assert out.splitlines() == ["failed    dim=15", "finished  dim=8", "2 runs"]
    specification({DIM: [15]})
    assert "runs = dim=15: failed" in run("sweep", "sweep.yaml")[2]
    specification({DIM: [15, 8]}, shared={"trainer": {"max_steps": 7}})
    assert "shared.trainer = " in run("sweep", "sweep.yaml")[2]


def test_what_llp_fit_would_refuse_is_refused_before_anything_starts(run, work):
    specification({"model.init_args.learning_rat": [0.1]})
    status, _, err = run("sweep", "sweep.yaml")
    assert status == 2
    assert "learning_rat" in err
    assert not (work / "lightning_logs").exists()


def test_an_array_job_has_a_task_for_each_run(run, work, cluster):
    specification({DIM: [8, 16]})
    assert run("sweep", "sweep.yaml", "--slurm", "4")[:2] == (0, "Submitted batch job 7\n")
    called = cluster.read_text()
    assert called.startswith("sbatch --array=1-2%4 ")
    assert called.endswith("compare.sbatch sweep.yaml lightning_logs/sweeps/tiny/runs-1.txt sweep\n")
    assert (work / "lightning_logs/sweeps/tiny/runs-1.txt").read_text() == "dim=8\ndim=16\n"
