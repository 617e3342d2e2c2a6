"""An exported folder, opened by transformers in a process without llp, is the model that was exported."""

import pytest
import torch

from helpers import exported, small_models
from llp import loading
from llp.evaluation.scoring_windows import scoring_windows
from llp.export.model_folder import write_folder
from llp.generation.continuation import generate
from llp.generation.sampling import Sampling

pytest.importorskip("transformers")

N, N_NEW = 41, 45  # each beyond the windows of all models
FORMS = {
    **{f"{name}-{settings}": (name, settings) for name, settings in small_models.FORMS},
    "tied": ("LLP", {"tie_embeddings": True}),
    "shared": ("LLP", {"share_key_value": True, "key_value_norm": True}),
    "first rotary": ("DoubleAttention", {"rotary_first_layer_only": True, "dropout": 0.3}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Of each form: the model as llp loads it, the tokens, and what transformers made of the folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    tokens = torch.randint(0, 256, (2, N), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 256
    jobs, loaded = [], {}
    for name, (architecture, settings) in FORMS.items():
        path = exported.save(folder / name / "a.ckpt", exported.small(architecture, **settings))
        write_folder(path, folder / name / "export")
        job = {"kind": "model", "folder": str(folder / name / "export"), "tokens": tokens.tolist(), "n_new": N_NEW}
        jobs.append(job)
        loaded[name] = loading.load(path)
    results = exported.elsewhere(folder, jobs)
    return {name: (loaded[name], tokens, result) for name, result in zip(FORMS, results, strict=True)}


@pytest.mark.parametrize("name", FORMS)
def test_logits_are_equal_bit_for_bit(models, name):
    model, tokens, result = models[name]
    with torch.no_grad():
        windows = [
            model.decoder(tokens[:, window.start : window.stop])[:, -window.n_scored :]
            for window in scoring_windows(0, N, *model.text_window)
        ]
    assert len(windows) > 1
    logits = torch.cat(windows, dim=1)
    assert torch.equal(result["logits"], logits)
    assert torch.equal(result["last"], logits[:, -3:])
    nats = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert torch.equal(result["loss"], nats)


@pytest.mark.parametrize("name", FORMS)
def test_greedy_continuation_is_llps(models, name):
    model, tokens, result = models[name]
    prompts = [row[:3].tolist() for row in tokens]
    assert model.text_window[0] < 3 + N_NEW
    drawn = [*prompts]
    for number, token in generate(model, prompts, N_NEW, model.text_window, [Sampling(0)] * 2):
        drawn[number] = [*drawn[number], token]
    assert result["drawn"] == drawn


@pytest.mark.parametrize("name", FORMS)
def test_loading_leaves_nothing_out(models, name):
    _, _, result = models[name]
    assert not any(result["info"].values()), result["info"]
    assert result["mode"] == (False, "torch.float32")
    assert result["tied"] == (name == "tied")
    assert "attention_mask hides positions" in result["padded"]
