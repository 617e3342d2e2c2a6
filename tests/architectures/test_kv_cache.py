"""A text in pieces gives the logits of the whole, for every architecture and option, side by side and alone."""

import random
from itertools import pairwise

import pytest
import torch

from helpers.small_models import FORMS, LATENT, OWN_FORMS, OWN_SETTINGS, build
from llp.decoder import extend as decoder_extend
from llp.decoder.extend import extend_each
from llp.decoder.geometry import LayerLengths
from llp.decoder.kv_cache import LayerCache
from llp.decoder.patterns import CausalAttention, SegmentAttention, SlidingWindowAttention
from llp.errors import SettingError

OPTIONS = [{}, {"share_key_value": True}, {"tie_embeddings": True}, {"rotary_first_layer_only": True}]
ALL_FORMS = [*FORMS, *OWN_FORMS]


def draw(*shape):
    return torch.randint(19, shape, generator=torch.Generator().manual_seed(1))


def in_pieces(model, tokens, cache, seed=0):
    """Logits of a text that is read in pieces of 1 to 9 tokens."""
    rng = random.Random(seed)
    cuts = [0]
    while cuts[-1] < tokens.shape[1]:
        cuts.append(min(tokens.shape[1], cuts[-1] + rng.randint(1, 9)))
    logits = []
    for start, stop in pairwise(cuts):
        piece, cache = model.extend(tokens[:, start:stop], cache)
        logits.append(piece)
    return torch.cat(logits, dim=1)


def in_windows(model, tokens, window_len, stride):
    """Logits of a text by definition: each full window gives those of its last `stride` positions."""
    stops = range(stride, tokens.shape[1] + 1, stride)
    windows = [tokens[:, max(0, stop - window_len) : stop] for stop in stops]
    return torch.cat([model(window)[:, -stride:] for window in windows], dim=1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "form"), ALL_FORMS, ids=str)
def test_pieces_give_the_logits_of_the_whole(name, form, options):
    model = build(name, **form, **options)
    for n in (1, 5) if name in LATENT else (1, 4, 12, 41):
        tokens = draw(2, n)
        got = in_pieces(model, tokens, model.new_cache(2), seed=n)
        torch.testing.assert_close(got, model(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "form"), ALL_FORMS, ids=str)
def test_with_a_window_each_position_is_predicted_from_the_window_that_scores_it(name, form, options):
    model = build(name, **form, **options)
    unit = model.geometry.unit
    for window_len, stride in ((12, 4), (13, 5), (18, 2), (12, 6), (5, 5), (12, 12)):
        if window_len % unit or stride % unit or (name in LATENT and stride > model.latent_len):
            continue
        tokens = draw(2, stride * (50 // stride))
        got = in_pieces(model, tokens, model.new_cache(2, (window_len, stride)))
        torch.testing.assert_close(got, in_windows(model, tokens, window_len, stride), rtol=0, atol=1e-12)


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
    tokens = draw(1, stride * 20)
    got = in_pieces(model, tokens, model.new_cache(1, (model.geometry.reach + stride, stride)))
    torch.testing.assert_close(
        got, in_windows(model, tokens, model.geometry.reach + stride, stride), rtol=0, atol=1e-12
    )
    shared = build(name, share_key_value=True)
    assert shared.new_cache(1, (model.geometry.reach + stride, stride)).window is not None


@pytest.mark.parametrize(("name", "form"), ALL_FORMS, ids=str)
def test_texts_at_different_positions_side_by_side(name, form):
    model = build(name, **form)
    window = (12, 6 if name == "ShiftedSegments" else 4)
    texts, lengths = draw(3, 30), (1, 7, 11)
    alone = [in_pieces(model, text[None], model.new_cache(1, window))[0] for text in texts]
    caches = [model.new_cache(1, window) for _ in texts]
    for text, n, cache in zip(texts, lengths, caches, strict=True):
        model.extend(text[None, :n], cache)
    for step in range(18):
        tokens = torch.stack([text[n + step] for text, n in zip(texts, lengths, strict=True)])[:, None]
        got = extend_each(model.decoder, tokens, caches)
        expected = torch.stack([logits[n + step] for logits, n in zip(alone, lengths, strict=True)])
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "form"), ALL_FORMS, ids=str)
def test_some_sequences_of_a_memory_go_on_and_one_goes_on_twice(name, form):
    model = build(name, **form)
    window = (12, 6 if name == "ShiftedSegments" else 4)
    texts = draw(3, 30)
    cache = model.new_cache(3, window)
    model.extend(texts[:, :10], cache)
    cache.select([2, 0, 2])
    texts = torch.cat((texts[[2, 0, 2], :10], draw(3, 20)), dim=1)
    other = model.new_cache(1, window)
    model.extend(texts[:1, :5], other)
    alone = in_pieces(model, texts, model.new_cache(3, window))
    for step in range(18):
        tokens = torch.cat((texts[:, 10 + step], texts[:1, 5 + step]))[:, None]
        got = extend_each(model.decoder, tokens, [cache, other])
        expected = torch.cat((alone[:, 10 + step], alone[:1, 5 + step]))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
@pytest.mark.parametrize(("name", "form"), ALL_FORMS, ids=str)
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
    with pytest.raises(SettingError, match="tokens = 6: without a window a text has latent_len = 5 positions"):
        model.extend(draw(1, 1), cache)
