"""Initial weights, losses, dropout and what is computed, in the decoder that all architectures share."""

import pytest
import torch
import torch.nn.functional as F

import llp
from helpers import reference
from helpers.small_models import ARCHITECTURES, LATENT, OWN_SETTINGS, SIZES, build
from llp.decoder.block import Attention
from llp.decoder.patterns import CausalAttention, Layer, SegmentAttention
from llp.errors import SettingError


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


@pytest.mark.parametrize("built_on", ["cpu", "meta"])
@pytest.mark.parametrize("settings", [{}, {"initialization": "torch"}, {"tie_embeddings": True}], ids=str)
def test_all_architectures_start_from_the_same_weights(settings, built_on):
    """Under one seed, bit for bit; V3's map alone comes beside them."""
    weights = {}
    for name, own in OWN_SETTINGS.items():
        torch.manual_seed(1)
        with torch.device(built_on):
            model = getattr(llp, name)(**SIZES, **own, **settings)
            model.configure_model()
        if built_on == "meta":
            model.to_empty(device="cpu")
            for module in model.decoder.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        weights[name] = model.decoder.state_dict()
    del weights["CompressedAttention"]["compress.weight"]
    first = weights["Transformer"]
    assert first["layers.2.mlp.up.weight"].std() > 0
    for name, others in weights.items():
        assert others.keys() == first.keys()
        assert [key for key in first if not torch.equal(first[key], others[key])] == [], name


def test_initial_weights_of_the_compression_and_of_torch():
    torch.manual_seed(0)
    model = llp.CompressedAttention(vocab_size=300, dim=128, n_layers=2, n_heads=4, history_len=400, compressed_len=100)
    model.configure_model()
    assert model.decoder.compress.weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
    model = llp.CompressedAttention(
        vocab_size=300, dim=128, n_layers=2, n_heads=4, history_len=400, compressed_len=100, initialization="torch"
    )
    model.configure_model()
    assert model.decoder.embed.weight.std().item() == pytest.approx(1, rel=0.02)
    for module in (model.decoder.compress, model.decoder.head, model.decoder.layers[1].mlp.down):
        bound = module.in_features**-0.5  # uniform in +-bound
        assert module.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("name", ["LLP", "CompressedAttention"])
def test_activation_checkpointing_computes_each_block_twice_and_the_same(name):
    """Once forward and once backward in training; else once."""
    tokens = torch.randint(19, (2, 14))
    outcomes = {}
    for on in (True, False):
        model = build(name, activation_checkpointing=on).train()
        calls = []
        for number, block in enumerate(model.decoder.layers):
            block.mlp.up.register_forward_hook(lambda *_, number=number, calls=calls: calls.append(number))
        loss = model.decoder.loss(tokens, tokens).mean
        assert calls == [0, 1, 2]
        gradients = torch.autograd.grad(loss, [*model.decoder.parameters()])
        assert calls == ([0, 1, 2, 2, 1, 0] if on else [0, 1, 2])
        outcomes[on] = [loss, *gradients]
        calls.clear()
        model.eval().decoder.loss(tokens, tokens).mean.backward()
        assert calls == [0, 1, 2]
    torch.testing.assert_close(outcomes[True], outcomes[False], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["LLP", "PerceiverAR"])
def test_the_loss_at_chosen_positions_is_that_of_the_window_with_all_others_ignored(name):
    """In value and gradients; `check_architecture` checks those of the last positions."""
    model, n = build(name), 18
    first = n - model.geometry.positions_out(n)
    tokens, targets = torch.randint(19, (2, 3, n))
    positions = first + torch.stack([torch.randperm(n - first)[:4] for _ in range(3)])  # (3, 4), in no order
    labels = targets.gather(1, positions)
    losses = model.decoder.loss(tokens, labels, positions)
    elsewhere = torch.full((3, n), -100).scatter(1, positions, labels)[:, first:]  # which torch ignores
    each = F.cross_entropy(model(tokens).mT, elsewhere, reduction="none")
    torch.testing.assert_close(losses.each, each.gather(1, positions - first), rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(each.sum() / 12, [*model.parameters()])
    got = torch.autograd.grad(losses.mean, [*model.parameters()])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_a_window_may_have_no_target():
    """As one that fills up a rank's share of a scored text."""
    tokens = torch.randint(19, (2, 10))
    assert build("LLP").decoder.loss(tokens, tokens[:, :0]).each.shape == (2, 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_head_is_counted_where_it_is(name):
    decoder, n = build(name).decoder, 18
    n_out = decoder.geometry.positions_out(n)
    assert decoder.flops(n) == decoder.flops(n, n_out)
    assert decoder.flops(n) - decoder.flops(n, 2) == 2 * (n_out - 2) * 16 * 19


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
    losses = decoder.loss(tokens, tokens)
    assert losses.mean.dtype == losses.each.dtype == torch.float32


def test_nothing_is_computed_for_positions_that_nobody_reads():
    """The rows that go through each linear map: latents alone query where the history's output is not read."""
    n, latents = 18, 5
    rows = {}
    for name in LATENT:
        decoder = build(name).decoder
        for label, module in decoder.named_modules():
            if isinstance(module, torch.nn.Linear) and label.startswith(("layers.0.", "layers.2.", "head")):
                module.register_forward_hook(
                    lambda module, args, output, key=(name, label): rows.update({key: args[0].shape[1]})
                )
        decoder(torch.zeros(1, n, dtype=torch.long))
        last = n if name in ("DoubleAttention", "SplitAttention") else 4 + latents
        assert rows[name, "layers.0.attention.key_value"] == n
        assert rows[name, "layers.2.attention.key_value"] == (latents if name == "PerceiverAR" else last)
        for part in ("attention.query", "attention.output", "mlp.up"):
            assert rows[name, f"layers.2.{part}"] == latents
        assert rows[name, "layers.0.attention.query"] == (latents if name == "PerceiverAR" else n)
        assert rows[name, "head"] == latents


def test_history_dropout_leaves_out_an_exact_share_in_training_only():
    model = build("PerceiverAR", history_dropout=0.4, latent_len=5)
    n = 15  # a history of 10, of which 4 are left out
    tokens = torch.randint(19, (3, n))
    plain = build("PerceiverAR", latent_len=5)
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=0, atol=0)  # off in evaluation

    model.train()
    embedded = model.decoder.embed(tokens).detach().requires_grad_()
    model.decoder.embed.register_forward_hook(lambda module, args, output: embedded)
    logits = model(tokens)
    seen = torch.autograd.grad(logits.square().sum(), embedded)[0].abs().amax(-1) > 0  # (3, n)
    assert seen.sum(1).tolist() == [11, 11, 11]
    assert seen[:, 10:].all()
    assert len({tuple(row) for row in seen.tolist()}) > 1  # drawn for each sample

    # The rest keep their rotary positions: the same as masking the dropped keys out of the whole.
    for row, kept in zip(range(3), seen, strict=True):
        positions = kept.nonzero().flatten().tolist()
        expected = reference.logits(
            plain.decoder.state_dict(),
            tokens[row].tolist(),
            3,
            2,
            lambda i, n, positions=positions: [j for j in range(i + 1) if n < 15 or j in positions or j == i],
            latent_len=5,
            latents_only=True,
        )
        torch.testing.assert_close(logits[row].detach(), expected, rtol=1e-11, atol=1e-11)


def test_compression_refuses_a_longer_input():
    with pytest.raises(SettingError, match=r"tokens = 19: history_len \+ latent_len = 18"):
        build("CompressedAttention")(torch.zeros(1, 19, dtype=torch.long))


def test_normalized_keys_keep_their_type():
    """As on CUDA, where autocast computes norms in float32: query, key and value must have one type."""
    attention = build("PerceiverAR", share_key_value=True, key_value_norm=True).decoder.layers[0].attention.bfloat16()
    attention.key_value_norm = torch.nn.Sequential(attention.key_value_norm.float())
    attention.key_value_norm.register_forward_pre_hook(lambda module, inputs: inputs[0].float())
    x = torch.randn(1, 4, attention.query.in_features, dtype=torch.bfloat16)
    key, value = attention.keys_and_values(x, torch.ones(4, attention.query.in_features // attention.n_heads // 2) + 0j)
    assert key.dtype == value.dtype == torch.bfloat16
    assert key is value


def test_history_dropout_needs_causal_attention():
    settings = build("LLP").settings
    Attention(settings, Layer(CausalAttention(), 5, history_dropout=0.1), rotary=True, output_std=None)
    with pytest.raises(SettingError, match=r"history_dropout = 0.1: .*SegmentAttention"):
        Attention(settings, Layer(SegmentAttention(4), 5, history_dropout=0.1), rotary=True, output_std=None)
