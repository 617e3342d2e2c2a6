"""The certificate passes every architecture and catches one that leaks, and one that reads nothing."""

from dataclasses import dataclass

import pytest
import torch

from helpers.small_models import FORMS, OWN_SETTINGS, SIZES, build
from llp import PerceiverAR, ShiftedSegments
from llp.decoder.patterns import LayerPattern
from llp.errors import SettingError
from llp.evaluation.causality_check import check_causality


@pytest.mark.parametrize(("name", "settings"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_architecture_passes(name, settings, dtype):
    model = build(name, **settings).to(dtype)
    n = 18
    with torch.no_grad():
        outcome = check_causality(model, 19, n, model.pattern_edges(n), model.context_lens(n))
    first = n - model(torch.zeros(1, n, dtype=torch.long)).shape[1]
    assert outcome["length"] == n
    assert {first, n - 2, n - 1} <= set(outcome["positions"])
    edges = [edge for edge in model.pattern_edges(n) if first < edge < n - 1]
    assert set(edges[:1]) <= set(outcome["positions"])


class Leaking(PerceiverAR):
    """Latents that see one position too many."""

    def layer_pattern(self, layer):
        def attend(query, key, value, dropout_p=0.0):
            n_queries, n_keys = query.shape[-2], key.shape[-2]
            mask = torch.ones(n_queries, n_keys).tril(n_keys - n_queries + 1).bool()
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

        return LayerPattern(attend, self.latent_len)


@dataclass
class Bigram:
    """Logits of the next token out of a table of the current one, and `leak` times that of the next."""

    leak: float

    def __call__(self, tokens):
        table = torch.randn(19, 19, generator=torch.Generator().manual_seed(0))
        current, following = table[tokens], table[tokens.roll(-1, dims=1)]
        return current + self.leak * following


def test_a_leak_is_caught_and_placed():
    torch.manual_seed(0)
    model = Leaking(**SIZES, **OWN_SETTINGS["PerceiverAR"])
    model.configure_model()
    message = "position 13: its logits change with the tokens after position 13"
    with torch.no_grad(), pytest.raises(SettingError, match=message):
        check_causality(model, 19, 18, model.pattern_edges(18))


def test_who_reads_nothing_by_definition_may_read_nothing():
    """The first position of a segment that knows of no other; who should read and does not is caught still."""
    model = build("LLP", look_back=0)
    edges, contexts = model.pattern_edges(18), model.context_lens(18)
    with torch.no_grad():
        check_causality(model, 19, 18, edges, contexts)
        with pytest.raises(SettingError, match=r"position 4: .*it reads nothing"):
            check_causality(model, 19, 18, edges)
    with pytest.raises(SettingError, match=r"position 3: .*it reads nothing"):
        check_causality(Bigram(leak=0), 19, 18, edges, contexts)


class ShiftedRound(ShiftedSegments):
    """S2-Attn as it was published: the shifted half is rolled, so that its last segment ends with the beginning."""

    def layer_pattern(self, layer):
        def attend(query, key, value, dropout_p=0.0):
            in_place, shifted = (
                [x.roll(-shift, dims=2).unflatten(2, (-1, self.segment_len)) for x in (query, key, value)]
                for shift in (0, self.segment_len // 2)
            )
            outputs = [
                torch.nn.functional.scaled_dot_product_attention(*(x.flatten(0, 1) for x in heads), is_causal=True)
                .unflatten(0, heads[0].shape[:2])
                .flatten(2, 3)
                .roll(shift, dims=2)
                .chunk(2, dim=1)[number]
                for number, (heads, shift) in enumerate(((in_place, 0), (shifted, self.segment_len // 2)))
            ]
            return torch.cat(outputs, dim=1)

        return LayerPattern(attend)


def test_the_published_form_of_shifted_segments_leaks():
    """The first half segment stands behind the last one in a rolled segment, and reads the end of the text."""
    torch.manual_seed(0)
    model = ShiftedRound(**SIZES, **OWN_SETTINGS["ShiftedSegments"])
    model.configure_model()
    with torch.no_grad(), pytest.raises(SettingError, match="position 0: its logits change with the tokens after"):
        check_causality(model, 19, 18, model.pattern_edges(18), model.context_lens(18))


def test_a_leak_of_one_bit_is_caught():
    with pytest.raises(SettingError, match="it reads what it predicts"):
        check_causality(Bigram(leak=1e-6), 19, 18, [])


@pytest.mark.parametrize("name", ["PerceiverAR", "DoubleAttention"])
def test_a_single_scored_position_is_probed(name):
    model = build(name, latent_len=1)
    with torch.no_grad():
        assert check_causality(model, 19, 18, model.pattern_edges(18))["positions"] == [17]
    with pytest.raises(SettingError, match="it reads nothing"):
        check_causality(lambda tokens: torch.zeros(1, 1, 19), 19, 18, [])


def test_a_diverged_model_is_told_so():
    with pytest.raises(SettingError, match="not all finite"):
        check_causality(lambda tokens: torch.full((1, 5, 19), torch.nan), 19, 18, [])


def test_a_model_that_reads_nothing_is_caught():
    def constant(tokens):
        return torch.zeros(1, 5, 19)

    with pytest.raises(SettingError, match="it reads nothing"):
        check_causality(constant, 19, 18, [])
    with pytest.raises(SettingError, match="it reads nothing"):
        check_causality(Bigram(leak=0), 19, 18, [])  # of the past it sees the current token only
