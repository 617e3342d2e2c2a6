"""FLOPs against torch's counter and the reference's masks; the peak rate of a device."""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers import reference
from helpers.small_models import FORMS, LATENT, build
from llp.training import throughput


@pytest.mark.parametrize("n", [9, 18])
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


def test_matrix_rate_is_that_of_a_product():
    rate = throughput.matrix_rate(torch.device("cpu"), torch.float32)
    matrix = torch.ones(1024, 1024)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    assert 0.1 < rate * min(seconds) / (2 * 1024**3) < 10  # the unit is right, whatever else the machine does
