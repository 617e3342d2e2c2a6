"""The architectures against the brute-force reference, their causality, their reach, their size."""

import pytest
import torch

import llp
import reference
from conftest import SIZES, build

SEES = {"LLP": reference.llp_sees(4), "Transformer": reference.transformer_sees}
ARCHITECTURES = list(SEES)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("n", [1, 3, 4, 8, 11])
def test_equals_the_reference(name, n):
    model = build(name)
    tokens = torch.randint(SIZES["vocab_size"], (2, n))
    with torch.no_grad():
        logits = model(tokens)
    for row, sequence in zip(logits, tokens.tolist(), strict=True):
        expected = reference.logits(model.decoder.state_dict(), sequence, 3, 2, SEES[name])
        torch.testing.assert_close(row, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LLP", {"n_heads": 4, "n_layers": 1, "mlp_ratio": 2, "rotary_base": 100.0, "segment_len": 3}),
        ("LLP", {"n_heads": 1, "n_layers": 4, "tie_embeddings": True, "segment_len": 1}),
        ("Transformer", {"n_heads": 8, "n_layers": 2, "mlp_ratio": 1, "rotary_base": 7.0, "tie_embeddings": True}),
    ],
)
def test_equals_the_reference_with_other_settings(name, settings):
    model = build(name, **settings)
    sees = reference.llp_sees(settings["segment_len"]) if name == "LLP" else reference.transformer_sees
    tokens = torch.randint(SIZES["vocab_size"], (1, 10))
    expected = reference.logits(
        model.decoder.state_dict(),
        tokens[0].tolist(),
        settings["n_layers"],
        settings["n_heads"],
        sees,
        settings.get("rotary_base", 10000.0),
    )
    torch.testing.assert_close(model(tokens)[0].detach(), expected, rtol=1e-11, atol=1e-11)


def influence(model, n: int) -> torch.Tensor:
    """(N, N): the largest gradient of position i's logits with respect to the embedding of position j."""
    tokens = torch.randint(SIZES["vocab_size"], (1, n))
    embedded = model.decoder.embed(tokens).detach().requires_grad_()
    hook = model.decoder.embed.register_forward_hook(lambda module, args, output: embedded)
    logits = model(tokens)[0]
    hook.remove()
    torch.manual_seed(1)
    probe = torch.randn_like(logits)  # a random direction: no gradient cancels by accident
    rows = [
        torch.autograd.grad((row * p).sum(), embedded, retain_graph=True)[0][0]
        for row, p in zip(logits, probe, strict=True)
    ]
    return torch.stack(rows).abs().amax(dim=-1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_gradient_from_a_later_token(name):
    matrix = influence(build(name), 18)
    assert torch.equal(matrix.triu(1), torch.zeros_like(matrix))
    assert (matrix.diagonal() > 0).all()


def test_transformer_sees_every_earlier_token():
    matrix = influence(build("Transformer"), 18)
    assert (matrix.tril()[torch.ones(18, 18).tril().bool()] > 0).all()


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_llp_reaches_to_the_start_of_the_segment_n_layers_back(n_layers):
    matrix = influence(build("LLP", n_layers=n_layers), 22)
    for i in range(22):
        first = max(0, (i // 4 - n_layers) * 4)
        assert (matrix[i, first : i + 1] > 0).all()
        assert (matrix[i, :first] == 0).all()


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("Transformer", {"n_layers": 24}, 214_622_020),
        ("LLP", {"n_layers": 24}, 214_622_020),
        ("Transformer", {"n_layers": 12}, 129_595_204),
        ("LLP", {"n_layers": 12}, 129_595_204),
        ("LLP", {"n_layers": 12, "tie_embeddings": True}, 107_326_276),
        ("Transformer", {"n_layers": 24, "tie_embeddings": True}, 192_353_092),
    ],
)
def test_published_sizes(name, settings, expected):
    with torch.device("meta"):
        model = getattr(llp, name)(vocab_size=28_996, dim=768, n_heads=6, **settings)
        model.configure_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_names_in_the_state_dict():
    layer = [
        *(f"attention_norm.{kind}" for kind in ("weight", "bias")),
        *("attention.query.weight", "attention.key_value.weight", "attention.output.weight", "attention.output.bias"),
        *(f"{part}.{kind}" for part in ("mlp_norm", "mlp.up", "mlp.down") for kind in ("weight", "bias")),
    ]
    names = ["embed.weight"] + [f"layers.{i}.{name}" for i in range(3) for name in layer]
    names += [f"{part}.{kind}" for part in ("final_norm", "head") for kind in ("weight", "bias")]
    for name in ARCHITECTURES:
        assert list(build(name).decoder.state_dict()) == names


def test_initial_weights():
    torch.manual_seed(0)
    model = llp.LLP(vocab_size=500, dim=256, n_layers=8, n_heads=4)
    model.configure_model()
    for name, parameter in model.decoder.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            scaled = name.endswith(("output.weight", "down.weight"))
            assert parameter.std().item() == pytest.approx(0.02 / 4 if scaled else 0.02, rel=0.02), name


def test_a_model_on_the_meta_device_is_materialised_module_by_module():
    with torch.device("meta"):
        model = llp.LLP(**SIZES)
        model.configure_model()
    model.to_empty(device="cpu")
    for module in model.decoder.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.reset_parameters()
    assert model.decoder.layers[0].mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert torch.isfinite(model(torch.zeros(1, 5, dtype=torch.long))).all()


def test_loss_is_the_cross_entropy_of_the_last_positions():
    decoder = build("LLP").decoder
    tokens, targets = torch.randint(19, (2, 2, 10))
    log_probabilities = decoder(tokens).log_softmax(-1)
    expected = -log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(decoder(tokens, targets), expected)
    torch.testing.assert_close(decoder(tokens, targets[:, -3:]), expected[:, -3:])
    assert decoder(tokens, targets[:, :0]).shape == (2, 0)


def test_dropout_acts_in_training_only():
    model = build("LLP", dropout=0.5)
    tokens = torch.randint(19, (1, 9))
    torch.testing.assert_close(model(tokens), model(tokens), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_its_dtype_and_its_loss_in_float32(dtype):
    decoder = build("LLP").decoder.to(dtype)
    tokens = torch.randint(19, (1, 9))
    assert decoder(tokens).dtype == dtype
    assert decoder(tokens, tokens).dtype == torch.float32
