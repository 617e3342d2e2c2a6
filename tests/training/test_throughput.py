"""FLOPs against torch's counter; the peak rate of a device."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.small_models import FORMS, build
from llp.training import throughput


@pytest.mark.parametrize(("name", "settings"), FORMS)
def test_flops_are_those_of_the_products(name, settings):
    """torch counts every product of matrices but those of the CPU's fused attention, which are two a pair."""
    model = build(name, **settings)
    n = 18
    tokens = torch.randint(19, (1, n))
    with FlopCounterMode(display=False) as forward:
        logits = model(tokens)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert model.decoder.flops(n) == forward.get_total_flops() + 4 * 16 * model.geometry.pair_count(n)
    # The embedding needs no gradient of its tokens; all else is two products for each one before.
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_the_matrix_rate_is_one_of_a_machine():
    assert 1e8 < throughput.matrix_rate(torch.device("cpu"), torch.float32) < 1e14  # FLOP/s


def test_a_training_step_pays_for_logits_where_there_are_labels():
    decoder = build("LLP").decoder
    everywhere, labels = (throughput.TrainingWindow(0, 18, n_trained, True) for n_trained in (18, 5))
    assert everywhere.flops(decoder) - labels.flops(decoder) == 3 * 2 * decoder.head.weight.numel() * (18 - 5)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-mixed", "bfloat16"), ("16-mixed", "float16"), ("64-true", "float64"), ("32-true", "float32")],
)
def test_precisions_name_the_type_of_the_products(precision, dtype):
    assert throughput.compute_dtype(precision) == getattr(torch, dtype)
