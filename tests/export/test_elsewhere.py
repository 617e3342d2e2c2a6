"""An exported folder, opened by transformers in a process without llp, is the model that was exported."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from datamodules.tokenizers import Bytes, HuggingFaceTokenizer
from helpers import exported, small_models
from llp import loading
from llp.export.fast_tokenizer import trial_texts
from llp.export.model_folder import write_folder
from llp.generation.continuation import continue_text, generate
from llp.generation.sampling import Sampling
from llp.scoring.windows import scoring_windows

pytest.importorskip("transformers")

N, N_NEW = 42, 45  # each beyond the windows of all models
FORMS = {
    "dense": ("Transformer", {}),
    "tied": ("LLP", {"tie_embeddings": True}),
    "shared": ("LLP", {"share_key_value": True, "key_value_norm": True}),
    "latents": ("SplitAttention", {"rotary_first_layer_only": True, "dropout": 0.3}),
    "compressed": ("CompressedAttention", {}),
}
DRAWS = ("dense", "tied", "compressed")  # with beams, and several samples
TOKENIZERS = ("bytes", "pieces", "newline", "given")
TEXT, HARNESS_LEN = "the harness reads windows that don't overlap", 16
PROMPTS = ["The left", "a", "", "Ü 😀\n x"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of each form, tokenizer and change: what llp loads, and what transformers made of the folder, in one process."""
    folder = tmp_path_factory.mktemp("elsewhere")
    jobs, ours = model_jobs(folder)
    for make in (tokenizer_jobs, harness_jobs, changed_jobs, trainer_jobs):
        more_jobs, more_ours = make(folder)
        jobs, ours = [*jobs, *more_jobs], ours | more_ours
    theirs = exported.elsewhere(folder, jobs)
    return {name: (own, result) for (name, own), result in zip(ours.items(), theirs, strict=True)}


def model_jobs(folder):
    tokens = torch.randint(0, 256, (2, N), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 256
    jobs, ours = [], {}
    for name, (architecture, settings) in FORMS.items():
        path = exported.save(folder / name / "a.ckpt", exported.small(architecture, **settings))
        write_folder(path, folder / name / "export")
        job = {"kind": "model", "folder": str(path.with_name("export")), "tokens": tokens.tolist(), "n_new": N_NEW}
        jobs += [{**job, "draws": name in DRAWS}]
        ours[name] = loading.load(path).as_text_model(), tokens
    return jobs, ours


def tokenizer_jobs(folder):
    """Of each tokenizer its tokens, and the continuations by a model that has it."""
    (folder / "pieces").mkdir()
    pieces = exported.trained_tokenizer(folder / "pieces")
    newline = int(pieces.encode(["\n"])[0])
    made = {
        "bytes": (Bytes(), None),
        "pieces": (pieces, None),
        "newline": (pieces, newline),
        "given": (given(folder), None),
    }
    jobs, ours = [], {}
    for name, (tokenizer, start) in made.items():
        model = small_models.build("LLP", vocab_size=tokenizer.vocab_size).float()
        if tokenizer is pieces:  # bytes that are no characters are shown in other ways there
            model.decoder.head.bias.data[[pieces._processor.is_byte(token) for token in range(500)]] = -1e4
        path = exported.save(folder / name / "a.ckpt", model, tokenizer, start_token=start)
        write_folder(path, folder / name / "export")
        texts = list(trial_texts(tokenizer.decode, tokenizer.vocab_size, seed=1))[::5]
        where = {"folder": str(path.with_name("export"))}
        jobs += [{"kind": "tokens", **where, "texts": texts, "skip": name != "newline"}]
        loaded = loading.load(path).as_text_model()
        ours[f"{name} tokens"] = loaded, texts
        if name == "pieces":
            jobs += [{"kind": "pipeline", **where, "prompts": PROMPTS, "n_new": N_NEW}]
            ours["pipeline"] = loaded
    return jobs, ours


def harness_jobs(folder):
    """A text of more than two windows of the harness, and a pair that fits into one."""
    where = str(folder / "bytes" / "export")
    job = {"kind": "harness", "folder": where, "text": TEXT, "pair": [TEXT[:3], TEXT[3:9]], "max_length": HARNESS_LEN}
    return [job], {"harness": loading.load(folder / "bytes" / "a.ckpt").as_text_model()}


def trainer_jobs(folder):
    """Four texts with 2 to 11 labels each: in one batch, and one at a time with their gradients accumulated."""
    tokens = torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(1))
    labels = tokens.where(torch.arange(12) < torch.tensor([[3], [12], [5], [9]]), -100)
    labels[:, 0] = -100
    where = {
        "kind": "trainer",
        "folder": str(folder / "tied/export"),
        "tokens": tokens.tolist(),
        "labels": labels.tolist(),
    }
    jobs = [{**where, "batch_size": size, "accumulation": 4 // size} for size in (4, 1)]
    return jobs, {"at once": None, "accumulated": None}


def given(folder):
    """A byte-level tokenizer.json with a token of two line ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a text\n\nof lines\n\nand lines\n\n"] * 9, trainer)
    assert tokenizer.token_to_id("ĊĊ") is not None
    tokenizer.save(str(folder / "tokenizer.json"))
    return HuggingFaceTokenizer(str(folder))


def changed_jobs(folder):
    """Folders that are no longer what was exported."""

    def rename_tensor(export):
        weights = load_file(export / "model.safetensors")
        weights["decoder.final_norm.gain"] = weights.pop("decoder.final_norm.weight")
        save_file(weights, export / "model.safetensors", {"format": "pt"})

    def change_argument(export):
        config = json.loads((export / "config.json").read_text())
        config["patterns"][1]["arguments"]["segment_len"] = 5
        (export / "config.json").write_text(json.dumps(config))

    jobs, ours = [], {}
    for change in (rename_tensor, change_argument):
        path = exported.save(folder / change.__name__ / "a.ckpt", exported.small("LLP"))
        write_folder(path, path.with_name("export"))
        change(path.with_name("export"))
        jobs += [{"kind": "refused", "folder": str(path.with_name("export"))}]
        ours[change.__name__] = None
    return jobs, ours


@pytest.mark.parametrize("name", FORMS)
def test_logits_are_equal_bit_for_bit(results, name):
    (model, tokens), result = results[name]
    with torch.no_grad():
        windows = [
            model.module.decoder(tokens[:, window.start : window.stop])[:, -window.n_scored :]
            for window in scoring_windows(0, N, *model.window)
        ]
    assert len(windows) > 1
    logits = torch.cat(windows, dim=1)
    assert torch.equal(result["logits"], logits)
    assert torch.equal(result["last"], logits[:, -3:])
    nats = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert torch.equal(result["loss"], nats)


@pytest.mark.parametrize("name", FORMS)
def test_states_are_the_decoders(results, name):
    """Of each position in its scoring window: the embeddings, what leaves each layer, and the input of the head."""
    (model, tokens), result = results[name]
    decoder, found = model.module.decoder, []
    modules = [decoder.embed, *decoder.layers[:-1], decoder.final_norm]
    hooks = [module.register_forward_hook(lambda *out: found.append(out[2])) for module in modules]
    with torch.no_grad():
        for window in scoring_windows(0, N, *model.window):
            decoder(tokens[:, window.start : window.stop])
            found[-len(modules) :] = [state[:, -window.n_scored :] for state in found[-len(modules) :]]
    for hook in hooks:
        hook.remove()
    assert len(result["states"]) == len(modules)
    for number, states in enumerate(result["states"]):
        assert torch.equal(states, torch.cat(found[number :: len(modules)], dim=1))
    assert torch.equal(result["states"][0], decoder.embed(tokens))


@pytest.mark.parametrize("name", FORMS)
def test_losses_and_their_form(results, name):
    _, result = results[name]
    torch.testing.assert_close(result["share"], result["loss"] * 2 * (N - 1) / 1000)
    loss, logits = result["tuple"]
    assert torch.equal(loss, result["loss"])
    assert torch.equal(logits, result["logits"])
    (plain, n_plain), (checkpointed, n_checkpointed) = result["gradients"]
    torch.testing.assert_close(checkpointed, plain)
    assert n_checkpointed == 2 * n_plain


@pytest.mark.parametrize("name", FORMS)
def test_greedy_continuation_is_llps(results, name):
    (model, tokens), result = results[name]
    prompts = [row[:3].tolist() for row in tokens]
    assert model.window[0] < 3 + N_NEW
    drawn = [*prompts]
    for number, token in generate(model.module, prompts, N_NEW, model.window, [Sampling(0)] * 2):
        drawn[number] = [*drawn[number], token]
    assert result["drawn"] == drawn


@pytest.mark.parametrize("kind", ["beams", "samples"])
@pytest.mark.parametrize("name", DRAWS)
def test_a_cache_changes_no_text(results, name, kind):
    _, result = results[name]
    assert result[f"{kind} True"] == result[f"{kind} False"]


@pytest.mark.parametrize("name", FORMS)
def test_a_cache_gives_the_same_logits_and_is_bounded(results, name):
    (model, _), result = results[name]
    cached, geometry = result["cached"], model.module.geometry
    torch.testing.assert_close(cached["logits"], cached["alone"], rtol=0, atol=1e-5)
    window_len, stride = model.window
    if geometry.scores_as_one_pass(window_len, stride):
        assert cached["n_read"] == N  # each position once
    else:  # and a window's context once for each window
        assert cached["n_read"] <= N + window_len * -(-N // stride)
    assert cached["n_kept"] <= 2 * window_len


def test_accumulated_gradients_are_those_of_one_batch(results):
    _, at_once = results["at once"]
    _, accumulated = results["accumulated"]
    assert accumulated["loss"] == pytest.approx(at_once["loss"], rel=1e-5)
    for name, weight in at_once["weights"].items():
        torch.testing.assert_close(accumulated["weights"][name], weight)


@pytest.mark.parametrize("name", FORMS)
def test_loading_leaves_nothing_out(results, name):
    _, result = results[name]
    assert not any(result["info"].values()), result["info"]
    assert result["mode"] == (False, "torch.float32")
    assert result["tied"] == (name == "tied")
    assert "attention_mask hides positions" in result["padded"]
    assert result["positions"] == "ValueError: position_ids: not supported by this model; leave it out"
    assert result["resized"].startswith("ValueError: the vocabulary has 257 tokens and can't be resized to 300")
    assert result["same size"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_llps(results, name):
    (model, texts), result = results[f"{name} tokens"]
    assert result["tokens"] == [model.tokens(text)[0].tolist() for text in texts]
    start = "\n" if name == "newline" else ""  # which is a token like any other
    assert result["texts"] == [start + text for text in texts]


def test_pipeline_continues_as_llp_does(results):
    model, result = results["pipeline"]
    ours = ["".join(continue_text(model, prompt, N_NEW, temperature=0)) for prompt in PROMPTS]
    assert [text.removesuffix("\n") for text in result["texts"]] == [text.removesuffix("\n") for text in ours]
    assert any(map(len, ours))
    assert result["together"] != ""


def test_the_harness_finds_what_the_definition_says(results):
    """Its windows don't overlap, and begin with one token of context; a pair has its whole context."""
    model, result = results["harness"]
    tokens = torch.tensor([[256, *TEXT.encode()]])
    parts = [tokens[:, start : start + HARNESS_LEN + 1] for start in range(0, len(TEXT), HARNESS_LEN)]
    # The last one is as long as the others, and scores the rest alone.
    last = tokens[:, -HARNESS_LEN - 1 :]
    n_rest = parts[-1].shape[1] - 1
    with torch.no_grad():
        nats = [model.module.decoder.loss(part[:, :-1], part[:, 1:]).each[0].double() for part in (*parts[:-1], last)]
        pair = model.module.decoder.loss(tokens[:, 1:9], tokens[:, 2:10]).each[0, 2:].double()
    assert 1 < n_rest < HARNESS_LEN
    assert result["rolling"] == pytest.approx(-float(nats[0].sum() + nats[1].sum() + nats[2][-n_rest:].sum()), rel=1e-6)
    assert result["pair"][0] == pytest.approx(-float(pair.sum()), rel=1e-6)


def test_a_changed_folder_is_refused(results):
    assert "decoder.final_norm.weight" in results["rename_tensor"][1]
    assert "in config.json was changed since the export" in results["change_argument"][1]
