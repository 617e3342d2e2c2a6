"""A text in pieces gives the logits of the whole, for every architecture and option, side by side and alone."""

import pytest
import torch

from helpers.small_models import FORMS, LATENT, OWN_FORMS, OWN_SETTINGS, build
from llp.decoder import extend as decoder_extend
from llp.decoder.geometry import LayerLengths
from llp.decoder.kv_cache import LayerCache
from llp.decoder.patterns import CausalAttention, SegmentAttention, SlidingWindowAttention
from llp.errors import SettingError


def draw(*shape):
    return torch.randint(19, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", OWN_SETTINGS)
def test_windows_that_hold_the_reach_are_never_left(name):
    """Where windows score as one pass does, nothing is ever read anew."""
    model = build(name)
    if model.geometry.reach is None:
        assert model.new_cache(1, (24, 12)).window == (24, 12)
        return
    unit = model.geometry.unit
    stride = 2 * unit
    assert model.new_cache(1, (model.geometry.reach + stride, stride)).window is None
    assert model.new_cache(1, (model.geometry.reach + stride - unit, stride)).window is not None
    shared = build(name, share_key_value=True)
    assert shared.new_cache(1, (model.geometry.reach + stride, stride)).window is not None


@pytest.mark.parametrize("options", [{}, {"share_key_value": True}], ids=str)
@pytest.mark.parametrize(("name", "form"), [*FORMS, *OWN_FORMS], ids=str)
def test_a_long_piece_is_read_in_parts(name, form, options, monkeypatch):
    monkeypatch.setattr(decoder_extend, "_LONGEST_PIECE", 7)
    model = build(name, **form, **options)
    tokens, n_read = draw(2, 5 if name in LATENT else 41), []
    whole = model(tokens)
    extend = model.decoder.extend
    model.decoder.extend = lambda tokens, *rest: n_read.append(tokens.shape[1]) or extend(tokens, *rest)
    cache = model.new_cache(2)
    torch.testing.assert_close(model.extend(tokens, cache)[0], whole, rtol=0, atol=1e-12)
    assert max(n_read) <= 7
    torch.testing.assert_close(model.extend(tokens, model.new_cache(2), 9)[0], whole[:, -9:], rtol=0, atol=1e-12)


def test_what_is_kept_of_a_long_piece_is_no_more_than_of_a_short_one():
    """Segments of 4: two of them, of which queries may still see the first."""
    cache = LayerCache(SegmentAttention(4), 1, LayerLengths(0, 0, 0, 0))
    positions = torch.arange(2000.0).view(1, 1, -1, 1)
    cache.extend(positions[:, :, :3], -positions[:, :, :3])
    keys, values = cache.extend(positions[:, :, 3:1999], -positions[:, :, 3:1999])
    assert torch.equal(keys, positions[:, :, :1999])
    assert torch.equal(values, -keys)
    assert sum(buffer.untyped_storage().nbytes() // buffer.element_size() for buffer in cache._buffers) <= 4 * 8
    keys, _ = cache.extend(positions[:, :, 1999:], -positions[:, :, 1999:])
    assert torch.equal(keys, positions[:, :, 1992:])


def test_logits_of_the_last_tokens_alone():
    for name in OWN_SETTINGS:
        model = build(name)
        tokens, window = draw(1, 23), (12, 6 if name == "ShiftedSegments" else 4)
        whole, _ = model.extend(tokens, model.new_cache(1, window))
        last, cache = model.extend(tokens, model.new_cache(1, window), n_logits=2)
        torch.testing.assert_close(last, whole[:, -2:], rtol=0, atol=1e-12)
        assert cache.n_read == 23


def test_what_is_kept_does_not_grow_where_the_pattern_forgets():
    for name in ("LLP", "SlidingWindow", "ShiftedSegments"):
        model, sizes = build(name), []
        cache = model.new_cache()
        for _ in range(8):
            for token in draw(20, 1, 1):
                model.extend(token, cache)
            sizes.append(sum(buffer.numel() for layer in cache.layers for buffer in layer._buffers))
        assert sizes[-1] == sizes[2]


def test_a_position_is_written_once_and_seldom_moved():
    """Two thousand positions, one at a time, with eight kept: the buffers are written to hardly more often."""
    cache, moved = LayerCache(SlidingWindowAttention(9), 1, LayerLengths(0, 0, 0, 0)), 0
    make_room = cache._make_room

    def counted(added, first, end):
        nonlocal moved
        moved += cache.n_seen - first
        make_room(added, first, end)

    cache._make_room = counted
    for n in range(2000):
        key = torch.full((1, 1, 1, 2), float(n))
        keys, values = cache.extend(key, -key)
        assert keys[0, 0, :, 0].tolist() == [float(position) for position in range(max(0, n - 8), n + 1)]
        assert torch.equal(values, -keys)
    assert moved < 2500


def test_shared_keys_and_values_are_kept_once():
    cache = LayerCache(CausalAttention(), 1, LayerLengths(0, 0, 0, 0))
    key = torch.ones(1, 1, 3, 2)
    keys, values = cache.extend(key, key)
    assert keys is values
    assert len(cache._buffers) == 1


def test_a_text_without_a_window_is_no_longer_than_the_latents():
    model = build("PerceiverAR")
    cache = model.new_cache()
    model.extend(draw(1, 5), cache)
    with pytest.raises(SettingError, match="tokens = 6: without a window, a text can have latent_len = 5 positions"):
        model.extend(draw(1, 1), cache)
