"""Which runs a comparison needs, by hand: budgets, learning rates, names."""

import math
from dataclasses import replace

import pytest

from helpers.comparison import record
from llp.comparison.plan import Arm, Plan
from llp.comparison.records import Failure, Timing
from llp.comparison.spec import Specification, merged, require_same_runs
from llp.errors import SettingError

DENSE, LATENT = {"class_path": "llp.Transformer"}, {"class_path": "llp.PerceiverAR", "init_args": {"latent_len": 25}}
ARMS = {
    "dense": Arm(parameters=10, pairs=5050, flops=3000, positions=100, windows_per_step=4),
    "latent": Arm(parameters=10, pairs=900, flops=1200, positions=25, windows_per_step=4),
}
SPECIFICATION = Specification(
    name="test",
    arms={"dense": DENSE, "latent": LATENT},
    reference="dense",
    steps=200,
    learning_rates=[0.001, 0.003, 0.009],
    scoring_window_len=100,
    scoring_stride=25,
    seeds=[0, 1],
    learning_rate_seeds=[0],
)


def record_of(run, loss, is_tested):
    return record(
        run.arm, run.seed, [2.0] * 5 if is_tested else None, run.learning_rate, steps=run.steps,
        curve=[{"step": run.steps, "loss": loss}],
    )  # fmt: skip


BROKEN = -1.0  # a loss that stands for a failure


class Runner:
    """Carries out what a plan asks for, with validation losses that are a function of arm and learning rate."""

    def __init__(self, specification, loss, arms=ARMS, timing=None):
        self.specification, self.loss, self.arms, self.timing = specification, loss, arms, timing
        self.records, self.failed = {}, {}

    def plan(self):
        return Plan(self.specification, self.arms, self.records, self.failed, self.timing)

    def round(self):
        """Do what can be done now; returns the arm, rate, seed and steps of each run, and whether it was tested."""
        plan, done = self.plan(), []
        for run in plan.to_do():
            done.append((run.arm, run.learning_rate, run.seed, run.steps, run.is_tested))
            loss = self.loss(run.arm, run.learning_rate)
            if loss == math.inf:
                self.failed[run.name] = Failure("the loss was no number", is_diverged=True)
            elif loss == BROKEN:
                self.failed[run.name] = Failure("the disk was full", is_diverged=False)
            else:
                self.records[run.name] = record_of(run, loss, run.is_tested)
        return done

    def all(self):
        rounds = []
        while now := self.round():
            rounds.append(now)
        return rounds


def seeds(study, arm, budget="windows"):
    """Of the tested runs."""
    return list(study.tested(budget, arm)["seed"])


def missing(study):
    return list(study.table.index[study.table["state"] == "missing"])


def rates(plan, arm):
    return [trial.learning_rate for trial in plan.trials(arm)]


def middle(arm, rate):
    return abs(math.log(rate / 0.003))


def test_trials_come_first_and_the_chosen_rate_is_tested():
    runner = Runner(SPECIFICATION, middle)
    trials, finals = runner.all()
    assert trials == [(arm, rate, 0, 200, False) for arm in ("dense", "latent") for rate in (0.001, 0.003, 0.009)]
    # That of seed 0 has been trained: it is only tested.
    assert sorted(finals) == [(arm, 0.003, seed, 200, True) for arm in ("dense", "latent") for seed in (0, 1)]
    assert len(runner.records) == 8
    study = runner.plan()
    assert [seeds(study, arm) for arm in ("dense", "latent")] == [[0, 1], [0, 1]]
    assert (missing(study), study.failed) == ([], {})


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.001, [0.000333, 0.001, 0.003, 0.009]),  # one beyond the end shows that the end was best
        (0.0001, [0.000111, 0.000333, 0.001, 0.003, 0.009]),  # two extensions at most
        (0.009, [0.001, 0.003, 0.009, 0.027]),
        (0.003, [0.001, 0.003, 0.009]),
    ],
)
def test_rates_are_extended_where_the_best_lies_at_an_end(best, tried):
    runner = Runner(SPECIFICATION, lambda arm, rate: abs(math.log(rate / best)))
    runner.all()
    assert rates(runner.plan(), "dense") == tried
    assert runner.plan().chosen_rate("dense") == min(tried, key=lambda rate: abs(math.log(rate / best)))


def test_a_rate_is_chosen_by_the_mean_over_its_seeds():
    losses = {(0.001, 0): 1.0, (0.001, 1): 4.0, (0.003, 0): 2.0, (0.003, 1): 2.0, (0.009, 0): 3.0, (0.009, 1): 3.0}
    runner = Runner(replace(SPECIFICATION, learning_rate_seeds=[]), None)
    plan = runner.plan()
    for run in plan.runs:
        runner.records[run.name] = record_of(run, losses[run.learning_rate, run.seed], is_tested=False)
    assert len(runner.records) == 12
    assert runner.plan().chosen_rate("dense") == 0.003  # though the best run of all has 0.001
    assert [trial.loss for trial in runner.plan().trials("dense")] == [2.5, 2.0, 3.0]


def test_a_trial_that_diverged_is_not_chosen_and_stops_no_other():
    runner = Runner(SPECIFICATION, lambda arm, rate: math.inf if rate == 0.009 else 1 / rate)
    runner.all()
    plan = runner.plan()
    assert plan.chosen_rate("dense") == 0.003
    assert rates(plan, "dense") == [0.001, 0.003, 0.009]
    study = plan
    assert (len(study.failed), missing(study)) == (2, [])
    assert [trial.outcomes for trial in study.trials("dense")] == [[1000], [1 / 0.003], [math.inf]]


def test_a_trial_that_failed_otherwise_leaves_its_arm_undecided_and_stops_no_other():
    runner = Runner(SPECIFICATION, lambda arm, rate: BROKEN if (arm, rate) == ("latent", 0.009) else middle(arm, rate))
    runner.all()
    study = runner.plan()
    assert [runner.plan().chosen_rate(arm) for arm in ("dense", "latent")] == [0.003, None]
    assert [len(seeds(study, arm)) for arm in ("dense", "latent")] == [2, 0]
    assert [trial.outcomes for trial in study.trials("latent")][2] == [None]
    assert list(study.failed) == ["latent-lr0.009-steps200-s0"]
    runner.failed.clear()  # and tried again
    runner.loss = middle
    runner.all()
    assert runner.plan().chosen_rate("latent") == 0.003


def test_budgets_by_hand():
    timing = Timing({"dense": 0.5, "latent": 0.2}, {})
    spec = replace(SPECIFICATION, budgets=["windows", "positions", "flops", "seconds"])
    plan = Plan(spec, ARMS, {}, {}, timing)
    steps = {budget: plan.steps("latent", budget) for budget in spec.budgets}
    assert steps == {"windows": 200, "positions": 800, "flops": 500, "seconds": 500}
    assert {plan.steps("dense", budget) for budget in spec.budgets} == {200}


def test_a_run_that_serves_two_budgets_is_one_run():
    runner = Runner(replace(SPECIFICATION, budgets=["windows", "positions"]), middle)
    runner.all()
    names = {pair: list(runs.index) for pair, runs in runner.plan().finals.items()}
    assert names["dense", "windows"] == names["dense", "positions"]
    assert names["latent", "positions"] == [f"latent-lr0.003-steps800-s{seed}" for seed in (0, 1)]


def test_the_runs_of_a_named_contrast_come_before_those_of_other_budgets():
    named = replace(SPECIFICATION, budgets=["windows", "positions", "flops"], primary=[["latent", "dense", "flops"]])
    *_, finals = Runner(named, middle).all()
    latent = [(seed, steps) for arm, _, seed, steps, _ in finals if arm == "latent"]
    assert latent == [(0, 200), (1, 200), (0, 500), (1, 500), (0, 800), (1, 800)]  # windows, FLOPs, positions


def test_equal_seconds_need_a_timing():
    with pytest.raises(SettingError, match="--time"):
        Plan(replace(SPECIFICATION, budgets=["seconds"]), ARMS, {}, {})


def test_what_a_run_is_set_to():
    plan = Plan(replace(SPECIFICATION, warmup=0.1, validations=3), ARMS, {}, {})
    assert plan.settings(plan.runs[0]) == {
        "seed_everything": 0,
        "model": {"class_path": "llp.Transformer", "init_args": {"learning_rate": 0.001, "warmup_steps": 20}},
        "data": {"init_args": {"scoring_window_len": 100, "scoring_stride": 25}},
        "trainer": {"max_steps": 200, "val_check_interval": 67},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "lpp"}, "reference = lpp: there is no such arm"),
        ({"learning_rates": [0.003, 0.001]}, "increasing"),
        ({"primary": [("dense", "latent", "flops")]}, "primary = flops"),
        ({"exploratory": [("dense", "lpp", "windows")]}, "exploratory = lpp"),
        ({"primary": [("dense", "latent", "windows"), ("latent", "dense", "windows")]}, "each pair once"),
        ({"arms": {"dense": {"init_args": {}}}}, "class_path"),
        ({"arms": {"dense": DENSE | {"n_layers": 3}}}, "n_layers"),
        ({"seeds": []}, "seeds"),
        ({"name": "a/b"}, "name"),
        ({"steps": 0}, "no rates if steps is 0"),
        ({"steps": 0, "learning_rates": [], "seeds": [0, 1]}, "give one seed"),
    ],
)
def test_what_a_specification_refuses(change, message):
    with pytest.raises(SettingError, match=message):
        replace(SPECIFICATION, **change)


SHARED = {"data": {"init_args": {"path": "here", "window_len": 100}}, "model": {"init_args": {"dim": 8}}}


@pytest.mark.parametrize(
    "change",
    [
        {"shared": merged(SHARED, {"data": {"init_args": {"path": "there", "cache_dir": "a"}}})},
        {"shared": merged(SHARED, {"trainer": {"logger": {"class_path": "WandbLogger"}}})},
        {"seeds": [0, 1, 2], "budgets": ["windows", "flops"], "learning_rates": [0.001, 0.01], "steps": 300},
        {"arms": {"dense": DENSE, "llp": {"class_path": "llp.LLP"}}},
    ],
)
def test_changes_that_leave_the_runs_of_a_comparison_as_they_are(change):
    spec = replace(SPECIFICATION, shared=SHARED)
    require_same_runs(spec.as_settings(), replace(spec, **change).as_settings())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared": merged(SHARED, {"data": {"init_args": {"window_len": 50}}})}, "shared.data"),
        (
            {"arms": {"dense": DENSE, "latent": {"class_path": "llp.PerceiverAR", "init_args": {"latent_len": 50}}}},
            "arms.latent",
        ),
        ({"warmup": 0.2}, "warmup = 0.2: .* another name"),
        ({"scoring_stride": 50}, "scoring_stride"),
    ],
)
def test_a_name_stands_for_one_configuration(change, message):
    spec = replace(SPECIFICATION, shared=SHARED)
    with pytest.raises(SettingError, match=message):
        require_same_runs(spec.as_settings(), replace(spec, **change).as_settings())
