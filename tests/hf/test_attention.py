"""Models of transformers with a pattern, against brute force; caches, pieces, padding, packed rows and gradients."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from helpers.own_patterns import Blind, Dilated
from helpers.random_models import FAMILIES, IS_5, LEARNT, explicit_attention, make, tokens
from llp.decoder.patterns import (
    AttentionPattern,
    CausalAttention,
    HistoryAttention,
    SegmentAttention,
    ShiftedSegmentAttention,
    SlidingWindowAttention,
)
from llp.errors import SettingError
from llp.hf import LocalCache, set_attention
from llp.hf.layer import layer_attentions

PATTERNS = [
    SegmentAttention(5),
    SegmentAttention(4, look_back=2),
    SegmentAttention(6, look_back=0),
    SlidingWindowAttention(7),
    ShiftedSegmentAttention(6, n_heads=4),
    Dilated(step=2, count=3),
]
CACHE = "cache" if IS_5 else "past_key_values"


def logits(model: PreTrainedModel, ids: Tensor, **arguments: object) -> Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False, **arguments).logits


def pieces(model: PreTrainedModel, ids: Tensor, cache: object, cuts: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        parts = torch.tensor_split(ids, cuts, dim=1)
        return torch.cat([model(part, **{CACHE: cache}).logits for part in parts], dim=1)


def expected(model: PreTrainedModel, ids: Tensor, pattern: AttentionPattern, keep: int, moves: bool = True) -> Tensor:
    """By brute force, in the layers that the model takes the pattern in by default."""
    set_attention(model, pattern, keep_first=keep, move_first=moves)
    layers = list(layer_attentions(model))
    set_attention(model, None)
    with explicit_attention(model, pattern, keep, layers, moves):
        return logits(model, ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_equals_explicit_relative_positions(family: str) -> None:
    model, ids, moves = make(family), tokens(19, 2), family not in LEARNT
    pattern = SegmentAttention(5)
    wanted = expected(model, ids, pattern, 3, moves)
    dense = logits(model, ids)
    set_attention(model, pattern, keep_first=3, move_first=moves)
    torch.testing.assert_close(logits(model, ids), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(pieces(model, ids, LocalCache(model), (2, 3, 4, 12, 13)), wanted, atol=1e-5, rtol=0)
    row, positions = ids.reshape(1, -1), torch.arange(19).repeat(2).unsqueeze(0)  # both texts, one after the other
    packed = logits(model, row, position_ids=positions).reshape_as(wanted)
    torch.testing.assert_close(packed, wanted, atol=1e-5, rtol=0)
    set_attention(model, None)
    assert torch.equal(logits(model, ids), dense)
    assert (dense - wanted).abs().max() > 0.05


@pytest.mark.parametrize("keep", [0, 1, 9])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_each_pattern_equals_explicit_relative_positions(pattern: AttentionPattern, keep: int) -> None:
    model, ids = make("llama", num_hidden_layers=2).double(), tokens(23)
    wanted = expected(model, ids, pattern, keep)
    set_attention(model, pattern, keep_first=keep)
    # transformers computes cosines and sines in float32, whatever the model's type
    torch.testing.assert_close(logits(model, ids), wanted, atol=1e-6, rtol=0)
    for cuts in ((3, 4, 5, 6, 16), tuple(range(1, 23)), (12,)):
        torch.testing.assert_close(pieces(model, ids, LocalCache(model), cuts), wanted, atol=1e-6, rtol=0)
        torch.testing.assert_close(pieces(model, ids, DynamicCache(), cuts), wanted, atol=1e-6, rtol=0)


def test_first_tokens_can_stay_at_their_own_positions() -> None:
    model, ids, pattern = make("qwen3"), tokens(23), SegmentAttention(5)
    wanted = expected(model, ids, pattern, 2, moves=False)
    set_attention(model, pattern, keep_first=2, move_first=False)
    torch.testing.assert_close(logits(model, ids), wanted, atol=1e-5, rtol=0)
    assert (expected(model, ids, pattern, 2) - wanted).abs().max() > 0.01


def test_a_position_that_sees_nothing_and_a_pattern_without_bounds() -> None:
    model, ids = make("llama"), tokens(23)
    set_attention(model, Blind(), keep_first=2)
    whole = logits(model, ids)
    assert whole.isfinite().all()
    torch.testing.assert_close(pieces(model, ids, LocalCache(model), (2, 4, 11)), whole, atol=1e-5, rtol=0)


def test_causal_attention_is_the_dense_one() -> None:
    model, ids = make("llama"), tokens(23)
    dense = logits(model, ids)
    set_attention(model, CausalAttention())
    torch.testing.assert_close(logits(model, ids), dense, atol=1e-6, rtol=0)


def test_named_layers_take_the_pattern_and_the_others_stay_dense() -> None:
    model, ids, pattern = make("llama"), tokens(23), SegmentAttention(5)
    with explicit_attention(model, pattern, 4, [1]):
        wanted = logits(model, ids)
    set_attention(model, pattern, layers=[1])
    assert list(layer_attentions(model)) == [1]
    torch.testing.assert_close(logits(model, ids), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(pieces(model, ids, LocalCache(model), (9, 10)), wanted, atol=1e-5, rtol=0)


def test_setting_again_replaces_and_a_copy_is_its_own() -> None:
    model, ids = make("llama"), tokens(23)
    dense = logits(model, ids)
    set_attention(model, SlidingWindowAttention(3))
    window = logits(model, ids)
    other = copy.deepcopy(model)
    set_attention(model, SegmentAttention(5))
    segments = logits(model, ids)
    set_attention(model, None)
    set_attention(model, None)
    assert torch.equal(logits(other, ids), window)
    assert torch.equal(logits(model, ids), dense)
    assert not torch.equal(segments, window)
    set_attention(model, SegmentAttention(5))
    assert torch.equal(logits(model, ids), segments)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gradients_equal_those_of_brute_force(pattern: AttentionPattern) -> None:
    model, ids = make("llama", num_hidden_layers=2).double().train(), tokens(23, 2)
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = torch.randn(2, 23, 61, dtype=torch.float64)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        (model(ids, use_cache=False).logits * weights).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    with explicit_attention(model, pattern, 3, [0, 1]):
        wanted = gradients()
    set_attention(model, pattern, keep_first=3)
    assert [module.training for module in model.modules()] == modes
    for found, grad in zip(gradients(), wanted, strict=True):
        torch.testing.assert_close(found, grad, atol=1e-4, rtol=1e-5)
    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for found, grad in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(found, grad)


def test_bfloat16_follows_float32_and_peft_models_are_taken() -> None:
    peft = pytest.importorskip("peft", exc_type=ImportError)
    model, ids = make("llama"), tokens(40)
    set_attention(model, SlidingWindowAttention(7))
    exact = logits(model, ids)
    model = peft.get_peft_model(model.bfloat16(), peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert (logits(model, ids).float() - exact).abs().max() < 0.3
    set_attention(model, SegmentAttention(8))
    assert (logits(model, ids).float() - exact).abs().max() > 1
    model.train()(ids, labels=ids).loss.backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())
    assert generate(model, ids, max_new_tokens=3).shape == (1, 43)


@pytest.mark.parametrize("pattern", [SegmentAttention(5), SlidingWindowAttention(4)], ids=str)
def test_documents_of_a_row_and_padding_equal_the_same_texts_alone(pattern: AttentionPattern) -> None:
    model, texts = make("llama"), [tokens(n, seed=n) for n in (13, 22, 5)]
    set_attention(model, pattern, keep_first=2)
    alone = [logits(model, text) for text in texts]
    row, positions = torch.cat(texts, dim=1), torch.cat([torch.arange(text.shape[1]) for text in texts]).unsqueeze(0)
    packed = logits(model, row, position_ids=positions).split([13, 22, 5], dim=1)
    for found, one in zip(packed, alone, strict=True):
        torch.testing.assert_close(found, one, atol=1e-5, rtol=0)

    for side in ("left", "right"):
        rows = [
            torch.nn.functional.pad(text, (40 - text.shape[1], 0) if side == "left" else (0, 40 - text.shape[1]))
            for text in texts
        ]
        ids = torch.cat(rows)
        mask = (ids > 0).long()
        numbers = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1) if side == "left" else None
        found = logits(model, ids, attention_mask=mask, position_ids=numbers)
        for row, real, one in zip(found, mask.bool(), alone, strict=True):
            torch.testing.assert_close(row[real], one[0], atol=1e-5, rtol=0)


def generate(model: PreTrainedModel, ids: Tensor, **arguments: object) -> Tensor:
    fixed = {"do_sample": False, "max_new_tokens": 14, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(ids, **{**fixed, **arguments})


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_generate_gives_the_same_text_with_each_cache(family: str) -> None:
    model, ids = make(family), tokens(20)
    set_attention(model, SegmentAttention(5), keep_first=2)
    text = generate(model, ids, use_cache=False)
    assert torch.equal(generate(model, ids), text)
    assert torch.equal(generate(model, ids, **{CACHE: DynamicCache()}), text)
    assert torch.equal(generate(model, ids, prefill_chunk_size=3), text)
    cache = LocalCache(model)
    generate(model, ids, **{CACHE: cache})
    assert cache.layers[0].keys.shape[2] <= 2 + 2 * 5
    beams = generate(model, ids, num_beams=3, use_cache=False)
    assert torch.equal(generate(model, ids, num_beams=3), beams)


def test_generate_from_prompts_of_several_lengths() -> None:
    model, prompts = make("llama"), [tokens(n, seed=n) for n in (4, 19)]
    set_attention(model, SegmentAttention(5), keep_first=2)
    ids = torch.cat([torch.nn.functional.pad(prompt, (19 - prompt.shape[1], 0)) for prompt in prompts])
    texts = generate(model, ids, attention_mask=(ids > 0).long())[:, 19:]
    for prompt, text in zip(prompts, texts, strict=True):
        assert torch.equal(generate(model, prompt)[0, prompt.shape[1] :], text)


def test_the_cache_stays_as_long_as_what_the_pattern_sees() -> None:
    model, ids = make("llama"), tokens(3000)
    set_attention(model, SegmentAttention(16), keep_first=4)
    cache, sizes = LocalCache(model), []
    with torch.no_grad():
        for piece in ids.split(50, dim=1):
            model(piece, **{CACHE: cache})
            sizes.append(cache.layers[2].keys.untyped_storage().nbytes())
    assert max(sizes) <= (4 + 2 * 16) * 2 * 8 * 4
    assert cache.get_seq_length() == 3000
    with pytest.raises(SettingError, match="can't be cropped"):
        cache.crop(-1)


TINY = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.mark.parametrize("pattern", [SegmentAttention(16), SlidingWindowAttention(24)], ids=str)
def test_generating_beyond_100_000_tokens_takes_no_more_memory(pattern: AttentionPattern) -> None:
    model, sizes, texts = make("llama", **TINY), [], []
    set_attention(model, pattern, keep_first=4)
    ids = tokens(100_000)
    for n in (1600, 100_000):  # both end a segment
        cache = LocalCache(model)
        texts.append(generate(model, ids[:, :n], **{CACHE: cache})[:, n:])
        assert cache.get_seq_length() == n + 13
        layer = cache.layers[0]
        sizes.append([one.untyped_storage().nbytes() for one in (layer.keys, layer.values)])
    assert sizes[0] == sizes[1]
    # One layer sees the first four tokens and the last few: the text goes on as that of those alone.
    short = torch.cat((ids[:, :4], ids[:, 100_000 - 192 + 4 :]), dim=1)
    assert torch.equal(generate(model, short, use_cache=False)[:, 192:], texts[1])


@pytest.mark.slow
def test_greedy_text_of_some_thousand_tokens_is_that_of_a_growing_cache() -> None:
    model, ids = make("llama", **TINY), tokens(10)
    set_attention(model, SegmentAttention(16), keep_first=4)
    text = generate(model, ids, max_new_tokens=3000, repetition_penalty=1.3)
    assert torch.equal(
        generate(model, ids, max_new_tokens=3000, repetition_penalty=1.3, **{CACHE: DynamicCache()}), text
    )
    assert len(text.unique()) > 20


REFUSED = {
    "Falcon": ("AttentionInterface", {}),
    "Bloom": ("AttentionInterface", {}),
    "Mpt": ("MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
    "GPTNeo": ("AttentionInterface", {"attention_types": [[["global"], 3]], "num_layers": 3, "num_heads": 4}),
    "Gemma2": ("softcap", {"head_dim": 8}),
    "GptOss": ("s_aux", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
}


@pytest.mark.parametrize("family", REFUSED)
def test_models_in_which_it_would_be_wrong_are_refused_and_left_as_they_were(family: str) -> None:
    message, settings = REFUSED[family]
    model = make(family, **settings)
    before = logits(model, tokens(12))
    with pytest.raises(SettingError, match=message):
        set_attention(model, SegmentAttention(5))
    assert torch.equal(logits(model, tokens(12)), before)


LONG = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LONG |= {"rope_type": "longrope", "rope_theta": 1e4} if IS_5 else {}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}),
        (
            "phi3",
            {
                "rope_scaling": {**LONG, "type": "longrope"},
                "original_max_position_embeddings": 48,
                "partial_rotary_factor": 1.0,
            },
        ),
    ],
)
def test_frequencies_that_depend_on_the_length_are_refused(family: str, settings: dict) -> None:
    with pytest.raises(SettingError, match="depend on the text's length"):
        set_attention(make(family, **settings), SegmentAttention(5), keep_first=0)


def test_settings_that_are_refused() -> None:
    model = make("llama")
    with pytest.raises(SettingError, match="keep_first = -1"):
        set_attention(model, SegmentAttention(5), keep_first=-1)
    with pytest.raises(SettingError, match="unit = 0"):
        set_attention(model, SegmentAttention(0))
    with pytest.raises(SettingError, match="pattern = HistoryAttention"):
        set_attention(model, HistoryAttention(5))
    with pytest.raises(SettingError, match=r"layers = \[7\]: .*\[0, 1, 2\]"):
        set_attention(model, SegmentAttention(5), layers=[7])
    with pytest.raises(SettingError, match="move_first = True"):
        set_attention(make("gpt2"), SegmentAttention(5))
    with pytest.raises(SettingError, match="set_attention"):
        LocalCache(model)


def test_passes_that_are_refused() -> None:
    model, ids = make("llama", attention_dropout=0.1), tokens(12)
    set_attention(model, SegmentAttention(5))
    with pytest.raises(SettingError, match="attention_mask"):
        logits(model, ids, attention_mask=torch.ones(1, 1, 12, 12, dtype=torch.bool))
    with pytest.raises(SettingError, match="attention_mask"):
        logits(model, ids, attention_mask=torch.tensor([[0, 0] + [1] * 10]))
    with pytest.raises(SettingError, match="dropout"):
        model.train()(ids)
    for family in ("llama", "gpt2"):
        other = make(family)
        set_attention(other, SegmentAttention(5), keep_first=0)
        with pytest.raises(SettingError, match="output_attentions"):
            copy.deepcopy(other)(ids, output_attentions=True)
        set_attention(other, None)
        other(ids, output_attentions=True)
    sliding = make("gemma3")  # after 10 positions its cache has as many keys as a LocalCache with 2 first tokens
    for keep_first, cut in ((4, 9), (2, 10)):
        set_attention(sliding, SegmentAttention(5), keep_first)
        with pytest.raises(SettingError, match="LocalCache"):
            pieces(sliding, ids, DynamicCache(config=sliding.config), (cut,))
