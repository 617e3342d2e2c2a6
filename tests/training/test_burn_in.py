"""Training in pieces: with burn-in, loss and gradient are those of one pass over each document."""

import pytest
import torch

from helpers.corpus import Given
from helpers.prepared import attach
from helpers.small_models import build
from llp.errors import SettingError

N = 24  # a multiple of all segments here: the windows of an epoch have one phase
FORMS = [  # of the architectures that forget: their reach is shorter than the text
    ("LLP", {}),
    ("LLP", {"look_back": 2, "rotary_first_layer_only": True, "activation_checkpointing": True}),
    ("SlidingWindow", {}),
    ("ShiftedSegments", {}),
]
SIZE = {"vocab_size": 257}


def text_of(n_tokens, seed=0):
    """So many tokens, the start token among them, as text."""
    letters = torch.randint(97, 123, (n_tokens - 1,), generator=torch.Generator().manual_seed(seed))
    return bytes(letters.tolist()).decode()


def prepared(tmp_path, model, lengths, batch_size=1, **settings):
    """Data whose training text has documents of so many tokens."""
    train = {f"document {number}": text_of(length, number) for number, length in enumerate(lengths)}
    documents = {"train": train, "validation": {"v": "some"}, "test": {"t": "text"}}
    settings = {"burn_in": "reach", "window_len": N, **settings}
    data = Given(documents, cache_dir=str(tmp_path), batch_size=batch_size, **settings)
    attach(data, model, max_steps=sum(lengths) // N // batch_size)
    data.prepare_data()
    data.setup("fit")
    return data


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.decoder.parameters()))


def in_pieces(model, data):
    """Mean loss of the windows of an epoch, and its gradients."""
    batches = [model.decoder.loss(inputs, *scored) for inputs, *scored in data.train_dataloader()]
    loss = torch.stack([losses.mean for losses in batches]).mean()
    assert {losses.each.shape[1] for losses in batches} == {N}
    return loss, gradients(loss, model)


def in_one_pass(model, data):
    """Mean loss of all positions, each document read from its beginning to its end, and its gradients."""
    file = data.files["train"]
    tokens = torch.from_numpy(file.tokens.astype("int64"))
    following = tokens.roll(-1)  # the last token is followed by the first document's start
    losses = []
    for document in file.documents:
        piece = slice(document.start, document.start + 1 + document.tokens)
        losses.append(model.decoder.loss(tokens[None, piece], following[None, piece]).mean * (1 + document.tokens))
    loss = torch.stack(losses).sum() / len(tokens)
    return loss, gradients(loss, model)


def assert_equal(one, other):
    for a, b in zip((one[0], *one[1]), (other[0], *other[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "settings"), FORMS)
def test_pieces_train_as_one_pass_over_each_document(tmp_path, name, settings):
    """Documents begin where windows do here; a batch may hold their beginnings and windows with all of the burn-in."""
    model = build(name, **SIZE, **settings).train()
    data = prepared(tmp_path, model, [3 * N, N, 4 * N], batch_size=2)
    assert_equal(in_pieces(model, data), in_one_pass(model, data))


@pytest.mark.parametrize(("name", "missing"), [("LLP", 4), ("SlidingWindow", 1), ("ShiftedSegments", 6)])
def test_less_than_the_reach_is_wrong(tmp_path, name, missing):
    """By a segment, or by one position of a sliding window: the bound is tight."""
    model = build(name, **SIZE).train()
    data = prepared(tmp_path, model, [6 * N], burn_in=model.geometry.reach - missing)
    pieces, whole = in_pieces(model, data), in_one_pass(model, data)
    assert max((a - b).abs().max() for a, b in zip(pieces[1], whole[1], strict=True)) > 1e-6


def test_burn_in_that_is_not_aligned_is_wrong_and_refused(tmp_path):
    """Segments begin where the tokens that are read begin: one token less, and all of them lie elsewhere."""
    model = build("LLP", **SIZE)
    tokens, targets = torch.randint(257, (2, 1, 48))
    whole = model.decoder.loss(tokens, targets).each[:, 24:36]
    same = model.decoder.loss(tokens[:, 12:36], targets[:, 24:36]).each
    torch.testing.assert_close(same, whole, rtol=1e-12, atol=1e-12)
    shifted = model.decoder.loss(tokens[:, 13:36], targets[:, 24:36]).each
    assert (shifted - whole).abs().max() > 1e-3
    with pytest.raises(SettingError, match=r"burn_in.*11.*multiple of 4"):
        prepared(tmp_path, model, [3 * N], burn_in=11)


@pytest.mark.parametrize(
    ("name", "settings", "burn_in", "expected"),
    [
        ("LLP", {}, -4, "multiple of 4"),
        ("LLP", {"dense_every": 2}, "reach", "depends on all tokens before it; set it to a number"),
        ("LLP", {"share_key_value": True}, "reach", "rotated by their positions in the window; set it to a number"),
        ("PerceiverAR", {}, 4, "raise window_len"),
        ("SlidingWindow", {}, 4 * N, "window_len = 24 a window reads 120 tokens, but the training split has only 72"),
    ],
)
def test_refusals(tmp_path, name, settings, burn_in, expected):
    with pytest.raises(SettingError, match=rf"^data\.init_args\.burn_in = {burn_in}: .*{expected}"):
        prepared(tmp_path, build(name, **SIZE, **settings), [3 * N], burn_in=burn_in).train_dataloader()
