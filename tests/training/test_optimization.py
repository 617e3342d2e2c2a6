"""Learning rate, decay and AdamW against their formulas, written out here; then a short run computed a second time."""

import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset

import llp
from helpers.small_models import ARCHITECTURES, OWN_SETTINGS, SIZES, build
from llp.optimization import cosine, halving, parameter_groups


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.1),  # warm-up over 10 steps: a tenth in the first one
        (1, 0.2),
        (5, 0.6),
        (8, 0.9),
        (9, 1.0),
        (10, 1.0),  # the peak: from here 100 steps down
        (35, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the way: cos(pi / 4)
        (60, 0.55),  # the middle: halfway between 1 and the floor
        (85, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2),
        (110, 0.1),
        (111, 0.1),  # and stays there
        (500, 0.1),
    ],
)
def test_cosine(step, expected):
    assert cosine(step, warmup_steps=10, max_steps=110, floor=0.1) == pytest.approx(expected, rel=1e-12)


def test_halving():
    assert [halving(step, 0, 3) for step in range(8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert [halving(step, 4, 3) for step in range(8)] == [0.25, 0.5, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert [halving(step, 1, 1) for step in range(4)] == [1, 0.5, 0.25, 0.125]
    assert halving(250_000, 500, 100_000) == 0.25


LINEAR = ("query", "key_value", "output", "up", "down", "head", "compress")
"""The last part of the name of a linear map's module."""


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("settings", [{}, {"share_key_value": True, "key_value_norm": True}], ids=["usual", "norm"])
def test_weights_of_linear_maps_decay_and_nothing_else(name, settings):
    decoder = build(name, **settings).decoder
    decaying, others = parameter_groups(decoder, 0.3)
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    expected = {name for name in names.values() if name.endswith(".weight") and name.split(".")[-2] in LINEAR}
    assert "head.weight" in expected
    assert len(expected) == 5 * 3 + 1 + (name == "CompressedAttention")
    assert sorted(names[id(parameter)] for parameter in decaying["params"]) == sorted(expected)
    assert sorted(names[id(parameter)] for parameter in others["params"]) == sorted({*names.values()} - expected)
    assert "embed.weight" not in expected
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)


class Recorder(Callback):
    """Weights before and after each optimizer step, and the gradient and learning rate that it takes."""

    def __init__(self):
        self.weights, self.grads, self.rates = [], [], []

    def on_train_start(self, trainer, pl_module):
        self.weights.append(snapshot(pl_module))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        grads = {name: parameter.grad for name, parameter in pl_module.decoder.named_parameters()}
        self.grads.append({name: grad.clone() for name, grad in grads.items()})
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append(snapshot(pl_module))


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.decoder.named_parameters()}


QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def train(n_steps, clip=None, **settings):
    """A real `Trainer.fit` in float64; what its steps took and made, and its optimizer."""
    torch.manual_seed(0)
    model = llp.LLP(**{**SIZES, "n_layers": 1, **OWN_SETTINGS["LLP"], **settings})
    windows = torch.randint(19, (4 * n_steps, 9))
    loader = DataLoader(TensorDataset(windows[:, :-1], windows[:, 1:]), batch_size=4)
    recorder = Recorder()
    options = {"accelerator": "cpu", "precision": "64-true", "max_steps": n_steps, "gradient_clip_val": clip, **QUIET}
    trainer = Trainer(callbacks=[recorder], **options)
    trainer.fit(model, loader)
    assert len(recorder.grads) == n_steps
    assert len(recorder.weights) == n_steps + 1
    return recorder, trainer.optimizers[0]


def adamw(weights, grads, decays, rates, betas, weight_decay, clip):
    """Loshchilov & Hutter, 2019, algorithm 2, on gradients clipped by their common norm: the weights after the steps.

    The decay is decoupled: it shrinks the weight by rate * weight_decay and never enters the moments.
    """
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    after = []
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        norm = math.sqrt(sum(g.square().sum().item() for g in grad.values()))
        share = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        new = {}
        for name, weight in weights.items():
            g = share * grad[name]
            first[name] = betas[0] * first[name] + (1 - betas[0]) * g
            second[name] = betas[1] * second[name] + (1 - betas[1]) * g**2
            step = first[name] / (1 - betas[0] ** t) / ((second[name] / (1 - betas[1] ** t)).sqrt() + 1e-8)
            new[name] = weight - rate * (step + (weight_decay if name in decays else 0) * weight)
        weights = new
        after.append(weights)
    return after


@pytest.mark.parametrize("clip", [None, 0.6])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_fit_takes_the_steps_of_adamw(clip, tied):
    """Decoupled decay, corrected moments, the norm clipped, and step k at the schedule's k-th rate."""
    settings = {"learning_rate": 2e-2, "betas": (0.7, 0.8), "weight_decay": 0.3}
    schedule = {"schedule": "cosine", "warmup_steps": 2, "final_learning_rate": 0.2}
    recorder, optimizer = train(5, clip, tie_embeddings=tied, **settings, **schedule)
    assert type(optimizer) is torch.optim.AdamW

    # Steps 0 and 1 warm up, 2 .. 4 lie at 0, 1/3 and 2/3 of the half cosine from 1 to 0.2.
    falls = [0.2 + 0.8 * (1 + math.cos(math.pi * share)) / 2 for share in (0, 1 / 3, 2 / 3)]
    rates = [2e-2 * factor for factor in (0.5, 1.0, *falls)]
    assert recorder.rates == [[pytest.approx(rate, rel=1e-12)] * 2 for rate in rates]

    norms = [math.sqrt(sum(g.square().sum().item() for g in grad.values())) for grad in recorder.grads]
    assert min(norms) > 0.6  # each is clipped, where there is a limit
    linear = {name for name in recorder.weights[0] if name.endswith(".weight") and name.split(".")[-2] in LINEAR}
    decays = linear | ({"embed.weight"} if tied else set())
    expected = adamw(recorder.weights[0], recorder.grads, decays, rates, (0.7, 0.8), 0.3, clip)
    for got, wanted in zip(recorder.weights[1:], expected, strict=True):
        assert got.keys() == wanted.keys()
        for name, weight in wanted.items():
            torch.testing.assert_close(got[name], weight, rtol=1e-9, atol=1e-12, msg=name)
