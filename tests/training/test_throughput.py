"""FLOPs against torch's counter and the reference's masks; the peak rate of a device."""

import time

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import llp
from helpers import reference
from helpers.small_models import FORMS, LATENT, build
from llp.training import throughput


@pytest.mark.parametrize("n", [4, 9, 17, 18])
@pytest.mark.parametrize(("name", "settings"), FORMS)
def test_flops_are_those_of_the_products(name, settings, n):
    """torch counts every product of matrices but the CPU's fused attention, whose pairs the reference's masks count."""
    model = build(name, **settings)
    tokens = torch.randint(19, (1, n))
    with FlopCounterMode(display=False) as forward:
        logits = model(tokens)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    pairs = n_pairs(model, n)
    assert model.decoder.flops(n) == forward.get_total_flops() + 4 * 16 * pairs
    # The embedding needs no gradient of its tokens; all else is two products for each one before.
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def n_pairs(model, n):
    """Pairs of query and key in a head over all layers, from the reference's definition of who sees whom."""
    name, settings = type(model).__name__, dict(model.hparams)
    latent_len, segment_len, dense_every = (settings.get(key) for key in ("latent_len", "segment_len", "dense_every"))
    dense_layers = range(model.n_layers)[::-dense_every] if dense_every else ()
    sees = {
        "LLP": lambda: reference.llp_sees(segment_len, settings["look_back"]),
        "SlidingWindow": lambda: reference.window_sees(settings["window"]),
        "ShiftedSegments": lambda: reference.llp_sees(segment_len, look_back=0),
        "DoubleAttention": lambda: reference.double_sees(latent_len),
        "CompressedAttention": lambda: reference.double_sees(latent_len),
        "SplitAttention": lambda: reference.split_sees(latent_len, segment_len),
    }.get(name, lambda: reference.transformer_sees)()
    total, held = 0, n
    for layer in range(model.n_layers):
        only_latents = name == "PerceiverAR" or (name in LATENT and layer == model.n_layers - 1)
        first = max(0, held - latent_len) if only_latents else 0
        halves = [sees, reference.shifted_sees(segment_len) if name == "ShiftedSegments" else sees]
        if layer in dense_layers:
            halves = [reference.transformer_sees] * 2
        total += sum(len(half(i, held)) for half in halves for i in range(first, held)) / 2
        if name == "PerceiverAR":
            held = min(held, latent_len)
        if name == "CompressedAttention" and layer == 0 and held > latent_len:
            held = settings["compressed_len"] + latent_len
    return total


def test_a_loader_of_ones_own_trains():
    """From Python, with any loader: what only ours know is left open."""
    model = llp.LLP(19, dim=16, n_layers=1, n_heads=2, segment_len=4, schedule="halving")
    windows = torch.randint(19, (8, 9))
    loader = DataLoader(TensorDataset(windows[:, :-1], windows[:, 1:]), batch_size=4)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_steps=2, log_every_n_steps=1, **quiet)
    trainer.fit(model, loader)
    assert trainer.global_step == 2


def test_matrix_rate_is_that_of_a_product():
    rate = throughput.matrix_rate(torch.device("cpu"), torch.float32)
    matrix = torch.ones(1024, 1024)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    assert 0.1 < rate * min(seconds) / (2 * 1024**3) < 10  # the unit is right, whatever else the machine does


def test_a_busy_machine_does_not_lower_the_rate(monkeypatch):
    """A device of 1e11 FLOP/s, whose first products, and then two of three, are late by the time of a slice."""
    spent = []

    def seconds(matrix):
        late = len(spent) < 6 or len(spent) % 3
        spent.append(2 * len(matrix) ** 3 / 1e11 + (0.03 if late else 0.0))
        return spent[-1]

    monkeypatch.setattr(throughput, "_seconds_of_square", seconds)
    assert throughput.matrix_rate(torch.device("cpu"), torch.float32) == pytest.approx(1e11)
    assert sum(spent) < 1


def test_threads_that_wait_for_one_another_do_not_lower_the_rate(monkeypatch):
    """On a busy machine two threads in step are a hundred times slower than one: one is measured, and counts twice."""

    def seconds(matrix):
        return 2 * len(matrix) ** 3 / 1e11 * (1 if torch.get_num_threads() == 1 else 100)

    monkeypatch.setattr(throughput, "_seconds_of_square", seconds)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert throughput.matrix_rate(torch.device("cpu"), torch.float32) == pytest.approx(2e11)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("flops", [1e9, 1e11, 5e12])
def test_the_rate_is_measured_in_less_than_a_second(monkeypatch, flops):
    """At sizes that fill the device: the last ones take a while, or are the greatest."""
    calls = []

    def seconds(matrix):
        calls.append((len(matrix), 2 * len(matrix) ** 3 / flops + 1e-5))
        return calls[-1][1]

    monkeypatch.setattr(throughput, "_seconds_of_square", seconds)
    monkeypatch.setattr(torch, "ones", lambda *size, device, dtype: range(size[0]))  # of no weight
    assert throughput.matrix_rate(torch.device("cpu"), torch.float32) == pytest.approx(flops, rel=0.01)
    assert sum(took for _, took in calls) < 1
    size, took = calls[-1]
    assert took > 0.01 or size == 8192


def test_the_maker_s_figure_comes_before_a_measurement(monkeypatch):
    throughput.peak_rate.cache_clear()
    monkeypatch.setattr(throughput, "get_available_flops", lambda device, dtype: 989_400_000_000_000)
    assert throughput.peak_rate(torch.device("cuda"), torch.bfloat16) == (989.4e12, False)
    throughput.peak_rate.cache_clear()
    monkeypatch.setattr(throughput, "get_available_flops", lambda device, dtype: None)  # Lightning knows it not
    monkeypatch.setattr(throughput, "matrix_rate", lambda device, dtype: 3e12)
    assert throughput.peak_rate(torch.device("cuda"), torch.bfloat16) == (3e12, True)
    throughput.peak_rate.cache_clear()


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("16-true", torch.float16),
        ("32-true", torch.float32),
        ("64-true", torch.float64),
    ],
)
def test_dtype_of_products(precision, dtype):
    assert throughput.compute_dtype(precision) is dtype
