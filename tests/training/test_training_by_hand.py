"""A real run computed a second time by a plain loop: windows, losses, rates, norms, counts, weights, validation.

Runs that are compared with other runs of the same code (resumed, over several processes) agree even where all are
wrong. The loop takes three things from the product: the decoder's logits (which `test_decoder.py` compares with the
definition), the order of windows (`test_windows.py`) and the weights that the run starts from.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import llp
from datamodules.loaders import TrainingOrder
from helpers.runs import curves
from llp.language_model import LanguageModel

N, B, ACCUMULATED, CLIP = 32, 4, 2, 0.5  # window, batch, batches of a step, limit of the gradient's norm
PEAK, WARMUP, MAX_STEPS, FLOOR, BETAS, DECAY = 1e-2, 2, 5, 0.1, (0.8, 0.9), 0.2
DECAYING = ("query.weight", "key_value.weight", "output.weight", "up.weight", "down.weight", "head.weight")
FLAGS = {
    "trainer.precision": "64-true",  # the very same arithmetic, so that nothing hides in a tolerance
    "trainer.max_steps": MAX_STEPS,
    "trainer.accumulate_grad_batches": ACCUMULATED,
    "trainer.gradient_clip_val": CLIP,
    "model.init_args.learning_rate": PEAK,
    "model.init_args.schedule": "cosine",
    "model.init_args.warmup_steps": WARMUP,
    "model.init_args.final_learning_rate": FLOOR,
    "model.init_args.betas": f"[{BETAS[0]},{BETAS[1]}]",
    "model.init_args.weight_decay": DECAY,
}


@pytest.fixture
def watched(monkeypatch):
    """The windows that training takes, and the weights before the first of them."""
    seen = {"inputs": [], "targets": []}
    original = LanguageModel.training_step

    def training_step(self, batch, batch_idx):
        seen.setdefault("weights", {name: w.detach().clone() for name, w in self.decoder.named_parameters()})
        seen["inputs"].append(batch[0].clone())
        seen["targets"].append(batch[1].clone())
        return original(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", training_step)
    return seen


def stream(work, split):
    """A split as bytes behind its start token, which for WikiText is a newline."""
    return torch.tensor([10, *(work / f"wikitext/wiki.{split}.tokens").read_bytes()])


def windows(text, seed, samples):
    """The windows of some samples, n + 1 tokens each, in the circle of the text."""
    order = TrainingOrder(len(text), stride=N, seed=seed)
    return torch.stack([text.roll(-order.start(sample))[: N + 1] for sample in samples])


def rate(step):
    """Two steps up, then down a half cosine that would reach a tenth at step 5."""
    fall = math.cos(math.pi * max(0, step - WARMUP) / (MAX_STEPS - WARMUP))
    return PEAK * min(1, (step + 1) / WARMUP) * (FLOOR + (1 - FLOOR) * (1 + fall) / 2)


def mean_nats(model, rows):
    logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def trained_by_hand(text, weights, seed):
    """The model after the run, and the figures of each step."""
    model = llp.LLP(257, dim=16, n_layers=2, n_heads=2, segment_len=8)
    model.configure_model()
    model.double().decoder.load_state_dict(weights)
    parameters = dict(model.decoder.named_parameters())
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in parameters.items()}
    figures = {"loss": [], "learning_rate": [], "grad_norm": [], "tokens": [], "input_tokens": []}
    for step in range(MAX_STEPS):
        samples = range(step * ACCUMULATED * B, (step + 1) * ACCUMULATED * B)
        loss = mean_nats(model, windows(text, seed, samples))  # all of the step's windows at once
        grads = dict(zip(parameters, torch.autograd.grad(loss, parameters.values()), strict=True))
        norm = math.sqrt(sum(grad.square().sum().item() for grad in grads.values()))
        with torch.no_grad():
            for name, parameter in parameters.items():
                grad = grads[name] * min(1, CLIP / (norm + 1e-6))
                first, second = moments[name]
                first.copy_(BETAS[0] * first + (1 - BETAS[0]) * grad)
                second.copy_(BETAS[1] * second + (1 - BETAS[1]) * grad**2)
                corrected = first / (1 - BETAS[0] ** (step + 1)), second / (1 - BETAS[1] ** (step + 1))
                decay = DECAY if name.endswith(DECAYING) else 0
                parameter -= rate(step) * (corrected[0] / (corrected[1].sqrt() + 1e-8) + decay * parameter)
        tokens = (step + 1) * ACCUMULATED * B * N
        values = loss.item(), rate(step), norm, tokens, tokens
        for name, value in zip(figures, values, strict=True):
            figures[name].append(value)
    return model, figures


def test_a_run_is_what_a_plain_loop_computes(run, work, watched):
    flags = [word for name, value in FLAGS.items() for word in (f"--{name}", value)]
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", "--seed_everything", 3, *flags)
    assert status == 0, err
    text = stream(work, "train")
    expected = windows(text, 3, range(MAX_STEPS * ACCUMULATED * B))
    assert torch.equal(torch.cat(watched["inputs"]), expected[:, :-1])
    assert torch.equal(torch.cat(watched["targets"]), expected[:, 1:])

    model, figures = trained_by_hand(text, watched["weights"], seed=3)
    assert min(figures["grad_norm"]) > CLIP  # the limit acts, and what is logged is the norm before it
    logged = curves(work / "lightning_logs/run")
    for name, values in figures.items():
        assert [step for step, _ in logged[f"train/{name}"]] == [*range(MAX_STEPS)]
        assert [value for _, value in logged[f"train/{name}"]] == pytest.approx(values, rel=1e-6), name
    checkpoint = torch.load(work / "lightning_logs/run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["seed"] == 3
    for name, weight in model.decoder.state_dict().items():
        got = checkpoint["state_dict"][f"decoder.{name}"]
        torch.testing.assert_close(got, weight, rtol=1e-8, atol=1e-10, msg=name)
        assert not torch.equal(weight, watched["weights"][name])

    # The last validation is one pass over the whole text: LLP's windows hold its reach.
    text = stream(work, "valid")
    with torch.no_grad():
        nats = mean_nats(model, text[None]).item()
    n_words = len((work / "wikitext/wiki.valid.tokens").read_text().split())
    n_words += (work / "wikitext/wiki.valid.tokens").read_text().count("\n")
    expected = {"loss": nats, "perplexity": math.exp(nats), "bits_per_byte": nats / math.log(2)}  # a token is a byte
    expected["word_perplexity"] = math.exp(nats * (len(text) - 1) / n_words)
    for name, value in expected.items():
        step, got = logged[f"val/{name}"][-1]
        assert (step, got) == (MAX_STEPS - 1, pytest.approx(value, rel=1e-5)), name
