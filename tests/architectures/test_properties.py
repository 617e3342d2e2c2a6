"""The shipped architectures, and some of one's own, have all the properties that `check_architecture` checks."""

import pytest
import torch

import llp
from helpers.own_patterns import OwnModel
from helpers.small_models import FORMS, OWN_FORMS, OWN_SETTINGS
from llp.decoder.patterns import AttentionPattern, Layer, SegmentAttention, SlidingWindowAttention
from llp.errors import SettingError
from llp.language_model import LanguageModel
from llp.testing import check_architecture

OPTIONS = [{}, {"share_key_value": True, "tie_embeddings": True, "rotary_first_layer_only": True, "dropout": 0.2}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "form"), [*FORMS, *OWN_FORMS], ids=str)
def test_an_architecture_is_what_its_layers_say(name, form, options):
    cls = OwnModel if name == "OwnModel" else getattr(llp, name)
    check_architecture(cls, max_len=40, **{**OWN_SETTINGS.get(name, {}), **form, **options})


class ReachAlone(AttentionPattern):
    reach = 5

    def sees(self, head, query, key):
        return query - key < 5


class WithOr(AttentionPattern):
    def sees(self, head, query, key):
        return query - key < 5 or key % 8 == 0


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (ReachAlone(), r"ReachAlone\.reach = 5: define `unit`"),
        (WithOr(), r"WithOr\.sees = a condition: .* ambiguous; join conditions by &"),
        (SegmentAttention(0), r"SegmentAttention\.unit = 0"),
        (SlidingWindowAttention(0), r"SlidingWindowAttention\.reach = -1"),
    ],
    ids=repr,
)
def test_a_pattern_that_can_not_be_used_is_refused_before_its_model_is_built(pattern, message):
    cls = type("Own", (LanguageModel,), {"layers": lambda self: [Layer(pattern)]})
    with pytest.raises(SettingError, match=message):
        check_architecture(cls, max_len=20)


class AtDistances(AttentionPattern):
    distances = torch.tensor([0, 1, 3])

    def sees(self, head, query, key):
        return ((query - key).unsqueeze(-1) == self.distances).any(dim=-1)


def test_a_pattern_may_hold_tensors_also_where_only_sizes_are_computed():
    cls = type("Own", (LanguageModel,), {"layers": lambda self: [Layer(AtDistances())]})
    with torch.device("meta"):
        assert cls(19, dim=16, n_heads=2).geometry.pair_count(4) == 4 + 3 + 1  # all but distance 2
