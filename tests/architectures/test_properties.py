"""The shipped architectures, and some of one's own, have all the properties that `check_architecture` checks."""

import pytest

import llp
from helpers.own_patterns import OwnModel
from helpers.small_models import FORMS, OWN_FORMS, OWN_SETTINGS
from llp.testing import check_architecture

OPTIONS = [{}, {"share_key_value": True, "tie_embeddings": True, "rotary_first_layer_only": True, "dropout": 0.2}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "form"), [*FORMS, *OWN_FORMS], ids=str)
def test_an_architecture_is_what_its_layers_say(name, form, options):
    cls = OwnModel if name == "OwnModel" else getattr(llp, name)
    check_architecture(cls, max_len=40, **{**OWN_SETTINGS.get(name, {}), **form, **options})
