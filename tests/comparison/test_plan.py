"""Which runs a comparison needs, by hand: budgets, learning rates, names, ablations."""

import math
from dataclasses import replace

import pytest

from llp.comparison.checks import all_runs
from llp.comparison.plan import Contestant, Plan, Timing, variants
from llp.comparison.specification import Ablation, Specification, merged
from llp.comparison.study import Failure, Record
from llp.errors import SettingError

DENSE, LATENT = {"class_path": "llp.Transformer"}, {"class_path": "llp.PerceiverAR", "init_args": {"latent_len": 25}}
CONTESTANTS = {
    "dense": Contestant(parameters=10, pairs=5050, flops=3000, positions=100, window_len=100, windows_per_step=4),
    "latent": Contestant(parameters=10, pairs=900, flops=1200, positions=25, window_len=100, windows_per_step=4),
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
    return Record(
        run=run.name, arm=run.arm, class_path="llp.Transformer", seed=run.seed, learning_rate=run.learning_rate,
        steps=run.steps, settings=run.settings, commands=[], parameters=1, pairs_per_window=1, flops_per_window=1,
        positions_per_window=1, windows=run.steps, curve=[{"step": run.steps, "loss": loss}],
        test={"rows": []} if is_tested else None, slices={} if is_tested else None, hashes={}, commit=None,
        versions={}, device="cpu",
    )  # fmt: skip


BROKEN = -1.0  # a loss that stands for a failure


class Runner:
    """Carries out what a plan asks for, with validation losses that are a function of arm and learning rate."""

    def __init__(self, specification, loss, contestants=CONTESTANTS, timing=None):
        self.specification, self.loss, self.contestants, self.timing = specification, loss, contestants, timing
        self.records, self.failed = {}, {}

    def plan(self):
        return Plan(self.specification, self.contestants, self.records, self.failed, self.timing)

    def round(self):
        """Do what can be done now; returns the arm, rate, seed and steps of each run, and whether it was tested."""
        plan, done = self.plan(), []
        for run in plan.runs():
            if not plan.is_done(run) and run.name not in self.failed:
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


def middle(arm, rate):
    return abs(math.log(rate / 0.003))


def test_trials_come_first_and_the_chosen_rate_is_tested():
    runner = Runner(SPECIFICATION, middle)
    trials, finals = runner.all()
    assert trials == [(arm, rate, 0, 200, False) for arm in ("dense", "latent") for rate in (0.001, 0.003, 0.009)]
    # That of seed 0 has been trained: it is only tested.
    assert sorted(finals) == [(arm, 0.003, seed, 200, True) for arm in ("dense", "latent") for seed in (0, 1)]
    assert len(runner.records) == 8
    study = runner.plan().study("llp compare x")
    assert [[one.seed for one in study.finals[arm, "windows"]] for arm in study.arms] == [[0, 1], [0, 1]]
    assert (study.missing, study.failed) == ([], {})


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
    assert runner.plan().rates("dense") == tried
    assert runner.plan().chosen_rate("dense") == min(tried, key=lambda rate: abs(math.log(rate / best)))


def test_a_rate_is_chosen_by_the_mean_over_its_seeds():
    losses = {(0.001, 0): 1.0, (0.001, 1): 4.0, (0.003, 0): 2.0, (0.003, 1): 2.0, (0.009, 0): 3.0, (0.009, 1): 3.0}
    runner = Runner(replace(SPECIFICATION, learning_rate_seeds=[]), None)
    plan = runner.plan()
    for run in plan.runs():
        runner.records[run.name] = record_of(run, losses[run.learning_rate, run.seed], is_tested=False)
    assert len(runner.records) == 12
    assert runner.plan().chosen_rate("dense") == 0.003  # though the best run of all has 0.001
    assert [len(trial.records) for trial in runner.plan().study("").trials["dense"]] == [2, 2, 2]


def test_a_trial_that_diverged_is_not_chosen_and_stops_no_other():
    runner = Runner(SPECIFICATION, lambda arm, rate: math.inf if rate == 0.009 else 1 / rate)
    runner.all()
    plan = runner.plan()
    assert plan.chosen_rate("dense") == 0.003
    assert plan.rates("dense") == [0.001, 0.003, 0.009]
    study = plan.study("")
    assert (len(study.failed), study.missing) == (2, [])
    assert [len(trial.records) for trial in study.trials["dense"]] == [1, 1, 0]
    assert [trial.is_diverged for trial in study.trials["dense"]] == [False, False, True]
    assert study.undecided == {}


def test_a_trial_that_failed_otherwise_leaves_its_arm_undecided_and_stops_no_other():
    runner = Runner(SPECIFICATION, lambda arm, rate: BROKEN if (arm, rate) == ("latent", 0.009) else middle(arm, rate))
    runner.all()
    study = runner.plan().study("")
    assert [runner.plan().chosen_rate(arm) for arm in ("dense", "latent")] == [0.003, None]
    assert [len(study.finals[arm, "windows"]) for arm in ("dense", "latent")] == [2, 0]
    assert [len(trial.records) for trial in study.trials["latent"]] == [1, 1, 0]
    (failed,) = study.failed
    assert study.undecided == {"latent": [failed]}
    runner.failed.clear()  # and tried again
    runner.loss = middle
    runner.all()
    assert runner.plan().chosen_rate("latent") == 0.003


def test_of_a_trial_that_lacks_a_seed_there_are_the_others():
    runner = Runner(replace(SPECIFICATION, learning_rate_seeds=[]), middle)
    plan = runner.plan()
    first = plan.runs()[0]
    runner.records[first.name] = record_of(first, 1.0, is_tested=False)
    study = runner.plan().study("")
    trial = study.trials["dense"][0]
    assert (trial.records, [one.run for one in trial.partial], trial.is_done) == ([], [first.name], False)
    assert [one.run for one in all_runs(study)] == [first.name]
    assert len(study.missing) == 11


def test_a_test_that_failed_changes_no_choice():
    """Its run has been trained, and is a trial, too."""
    runner = Runner(SPECIFICATION, middle)
    runner.round()
    (chosen,) = [name for name, one in runner.records.items() if (one.arm, one.learning_rate) == ("dense", 0.003)]
    runner.failed[chosen] = Failure("the test failed", is_diverged=False)
    runner.all()
    study = runner.plan().study("")
    assert runner.plan().chosen_rate("dense") == 0.003
    assert ([one.seed for one in study.finals["dense", "windows"]], study.undecided) == ([1], {})


def test_a_loss_that_is_no_number_is_not_chosen():
    runner = Runner(SPECIFICATION, lambda arm, rate: None if rate == 0.003 else rate)
    runner.all()
    plan = runner.plan()
    assert plan.chosen_rate("dense") == plan.rates("dense")[0] == 0.000111
    assert plan.study("").missing == []


def test_an_arm_whose_trials_all_fail_has_no_tested_run():
    runner = Runner(SPECIFICATION, lambda arm, rate: math.inf if arm == "latent" else middle(arm, rate))
    runner.all()
    study = runner.plan().study("")
    assert [len(study.finals[arm, "windows"]) for arm in ("dense", "latent")] == [2, 0]


def test_budgets_by_hand():
    timing = Timing({"dense": 0.5, "latent": 0.2}, {}, {})
    spec = replace(SPECIFICATION, budgets=["windows", "positions", "flops", "seconds"])
    plan = Plan(spec, CONTESTANTS, {}, {}, timing)
    steps = {budget: plan.steps("latent", budget) for budget in spec.budgets}
    assert steps == {"windows": 200, "positions": 800, "flops": 500, "seconds": 500}
    assert {plan.steps("dense", budget) for budget in spec.budgets} == {200}


def test_a_run_that_serves_two_budgets_is_one_run():
    runner = Runner(replace(SPECIFICATION, budgets=["windows", "positions"]), middle)
    runner.all()
    finals = runner.plan().study("").finals
    assert finals["dense", "windows"] == finals["dense", "positions"]
    assert finals["latent", "windows"] != finals["latent", "positions"]
    assert [one.steps for one in finals["latent", "positions"]] == [800, 800]


def test_the_runs_of_a_named_contrast_come_before_those_of_other_budgets():
    named = replace(SPECIFICATION, budgets=["windows", "positions", "flops"], primary=[["latent", "dense", "flops"]])
    *_, finals = Runner(named, middle).all()
    latent = [(seed, steps) for arm, _, seed, steps, _ in finals if arm == "latent"]
    assert latent == [(0, 200), (1, 200), (0, 500), (1, 500), (0, 800), (1, 800)]  # windows, FLOPs, positions


def test_equal_seconds_need_a_timing():
    with pytest.raises(SettingError, match="--time"):
        Plan(replace(SPECIFICATION, budgets=["seconds"]), CONTESTANTS, {}, {})


def test_what_a_run_is_set_to():
    run = Plan(replace(SPECIFICATION, warmup=0.1, validations=3), CONTESTANTS, {}, {}).runs()[0]
    assert run.settings == {
        "seed_everything": 0,
        "model": {"class_path": "llp.Transformer", "init_args": {"learning_rate": 0.001, "warmup_steps": 20}},
        "data": {"init_args": {"scoring_window_len": 100, "scoring_stride": 25}},
        "trainer": {"max_steps": 200, "val_check_interval": 67},
    }


def test_names_can_be_read():
    names = [run.name for run in Plan(SPECIFICATION, CONTESTANTS, {}, {}).runs()]
    assert names[:3] == [f"dense-lr{rate}-steps200-s0" for rate in (0.001, 0.003, 0.009)]
    assert len(set(names)) == 6


def test_an_ablation_takes_the_arms_rate_and_shows_its_own_value():
    ablation = Ablation("latent", "latent_len", [10, 50], {"n_layers": [5, 1]})
    spec = replace(SPECIFICATION, ablations={"latents": ablation})
    few = replace(CONTESTANTS["latent"], positions=10)
    contestants = CONTESTANTS | {"latent.latent_len=10": few, "latent.latent_len=50": few}
    assert variants(spec)["latent.latent_len=50"]["init_args"] == {"latent_len": 50, "n_layers": 1}
    runner = Runner(spec, middle, contestants)
    runner.all()
    found = runner.plan().study("").ablations["latents"]
    assert [(value, [one.arm for one in records]) for value, records in found] == [
        (10, 2 * ["latent.latent_len=10"]),
        (25, 2 * ["latent"]),
        (50, 2 * ["latent.latent_len=50"]),
    ]
    assert {one.learning_rate for _, records in found for one in records} == {0.003}


def test_noise_seeds_are_those_of_the_reference():
    runner = Runner(replace(SPECIFICATION, noise_seeds=[0, 1, 2]), middle)
    runner.all()
    noise = runner.plan().study("").noise
    assert [(one.arm, one.seed) for one in noise] == [("dense", 0), ("dense", 1), ("dense", 2)]


def test_configurations_are_merged_like_those_of_fit():
    one, other = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}, "d": [2]}
    assert merged(one, other) == {"a": {"b": 1, "c": 3}, "d": [2]}
    assert one == {"a": {"b": 1, "c": 2}, "d": [1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "lpp"}, "reference = lpp: it is none of the arms"),
        ({"learning_rates": [0.003, 0.001]}, "rising"),
        ({"learning_rates": [0.003]}, "extensions"),
        ({"budgets": ["windows", "windows"]}, "budgets"),
        ({"primary": [("dense", "latent", "flops")]}, "primary = flops"),
        ({"primary": [("dense", "lama", "windows")]}, "primary = lama"),
        ({"primary": [("dense", "dense", "windows")]}, "against itself"),
        ({"primary": [("dense", "latent", "windows"), ("latent", "dense", "windows")]}, "once a budget"),
        ({"arms": {"dense": {"init_args": {}}}}, "class_path"),
        ({"arms": {"dense": DENSE | {"n_layers": 3}}}, "n_layers"),
        ({"arms": {"a-b": DENSE}}, "letters, digits"),
        ({"seeds": []}, "seeds"),
        ({"warmup": 1.0}, "warmup"),
        ({"name": "a/b"}, "name"),
        ({"ablations": {"x": Ablation("dense", "dim", [1, 2], {"n_layers": [1]})}}, "ablations.x.together.n_layers"),
    ],
)
def test_what_a_specification_refuses(change, message):
    with pytest.raises(SettingError, match=message):
        replace(SPECIFICATION, **change)
