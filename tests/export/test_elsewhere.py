"""An exported folder, opened by transformers, is the model that was exported."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from datamodules.tokenizers import Bytes, HuggingFaceTokenizer
from helpers import exported
from helpers.texts import byte_level
from llp import loading
from llp.export.fast_tokenizer import trial_texts
from llp.export.model_folder import write_folder
from llp.generation.continuation import continue_text, generate
from llp.generation.sampling import Sampling
from llp.scoring.windows import scoring_windows

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

N, N_NEW = 42, 45  # each beyond the windows of all models
FORMS = {
    "dense": ("Transformer", {}),
    "tied": ("LLP", {"tie_embeddings": True}),
    "shared": ("LLP", {"share_key_value": True, "key_value_norm": True}),
    "latents": ("SplitAttention", {"rotary_first_layer_only": True, "dropout": 0.3}),
    "compressed": ("CompressedAttention", {}),
}
TOKENS = torch.randint(0, 256, (2, N), generator=torch.Generator().manual_seed(0))
TOKENS[:, 0] = 256


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory):
    """Before transformers runs a folder's code, it copies it into a cache; here of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", cache)
        patch.setattr(sys, "path", [*sys.path])  # which it adds the cache to
        yield


def export(folder, model, tokenizer=None, start_token=None):
    """A checkpoint and its exported folder; returns what llp loads of the one, and the other."""
    path = exported.save(folder / "a.ckpt", model, tokenizer, start_token=start_token)
    write_folder(path, folder / "export")
    return loading.load(path).as_text_model(), folder / "export"


def opened(folder, **settings):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **settings)


@pytest.fixture(scope="module", params=FORMS)
def form(request, tmp_path_factory):
    """A form of the model: as llp loads it, and as transformers does, with what that says of it."""
    architecture, settings = FORMS[request.param]
    ours, folder = export(tmp_path_factory.mktemp(request.param), exported.small(architecture, **settings))
    theirs, info = opened(folder, output_loading_info=True)
    assert not theirs.training
    theirs.generation_config.eos_token_id = None
    return SimpleNamespace(name=request.param, ours=ours, theirs=theirs, info=info)


@torch.no_grad()
def logits_in_windows(model):
    """Of every position, in the window that scores it."""
    windows = [*scoring_windows(0, N, *model.window)]
    assert len(windows) > 1
    decoder = model.module.decoder
    return torch.cat([decoder(TOKENS[:, one.start : one.stop])[:, -one.n_scored :] for one in windows], dim=1)


@torch.no_grad()
def test_logits_and_losses_are_equal_bit_for_bit(form):
    logits, model = logits_in_windows(form.ours), form.theirs
    nats = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    assert torch.equal(model(TOKENS).logits, logits)
    assert torch.equal(model(TOKENS, logits_to_keep=3).logits, logits[:, -3:])
    loss, returned = model(TOKENS, labels=TOKENS, return_dict=False)
    assert torch.equal(loss, nats)
    assert torch.equal(returned, logits)
    share = model(TOKENS, labels=TOKENS, num_items_in_batch=1000).loss
    torch.testing.assert_close(share, nats * 2 * (N - 1) / 1000)


@torch.no_grad()
def test_states_are_the_decoders(form):
    """Of each position in its scoring window: the embeddings, what leaves each layer, and the input of the head."""
    decoder, found = form.ours.module.decoder, []
    modules = [decoder.embed, *decoder.layers[:-1], decoder.final_norm]
    hooks = [module.register_forward_hook(lambda *out: found.append(out[2])) for module in modules]
    for window in scoring_windows(0, N, *form.ours.window):
        decoder(TOKENS[:, window.start : window.stop])
        found[-len(modules) :] = [state[:, -window.n_scored :] for state in found[-len(modules) :]]
    for hook in hooks:
        hook.remove()
    theirs = form.theirs(TOKENS, output_hidden_states=True).hidden_states
    assert len(theirs) == len(modules)
    for number, states in enumerate(theirs):
        assert torch.equal(states, torch.cat(found[number :: len(modules)], dim=1))
    assert torch.equal(theirs[0], decoder.embed(TOKENS))


def gradient(model, checkpoints):
    """That of the embeddings, and how often the first layer was computed."""
    model.gradient_checkpointing_enable() if checkpoints else model.gradient_checkpointing_disable()
    model.train().zero_grad()
    calls = []
    hook = model.decoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(None))
    torch.manual_seed(0)
    model(TOKENS, labels=TOKENS).loss.backward()
    hook.remove()
    model.eval()
    return model.decoder.embed.weight.grad.clone(), len(calls)


def test_gradient_checkpointing_computes_twice_and_the_same(form):
    plain, n_plain = gradient(form.theirs, checkpoints=False)
    checkpointed, n_checkpointed = gradient(form.theirs, checkpoints=True)
    torch.testing.assert_close(checkpointed, plain)
    assert n_checkpointed == 2 * n_plain


def greedy(model, prompts):
    """Prompts with their greedy continuations by llp."""
    drawn = [*prompts]
    for number, token in generate(model.module, prompts, N_NEW, model.window, [Sampling(0)] * len(prompts)):
        drawn[number] = [*drawn[number], token]
    return drawn


def test_greedy_continuation_is_llps(form):
    assert form.ours.window[0] < 3 + N_NEW
    drawn = form.theirs.generate(TOKENS[:, :3], max_new_tokens=N_NEW, do_sample=False)
    assert drawn.tolist() == greedy(form.ours, TOKENS[:, :3].tolist())


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_a_cache_changes_no_text(form, settings):
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        texts.append(form.theirs.generate(TOKENS[:, :3], max_new_tokens=12, use_cache=use_cache, **settings))
    assert torch.equal(*texts)


@torch.no_grad()
def test_a_cache_gives_the_same_logits_and_is_bounded(form):
    model, geometry, (window_len, stride) = form.theirs, form.ours.module.geometry, form.ours.window
    n_read, cache = [], None
    for n in range(1, N + 1):
        hook = model.decoder.embed.register_forward_hook(lambda *args: n_read.append(args[2].shape[1]))
        out = model(TOKENS[:, :n], next_token_only=True, use_cache=True, kv_cache=cache)
        hook.remove()
        cache = out.kv_cache
        alone = model(TOKENS[:, :n], next_token_only=True).logits
        torch.testing.assert_close(out.logits, alone, rtol=0, atol=1e-5)
        kept = [len(buffer[0, 0]) for layer in cache.kv_cache.layers for buffer in layer._buffers]
        assert max(kept) <= 2 * window_len
    if geometry.scores_as_one_pass(window_len, stride):
        assert sum(n_read) == N  # each position once
    else:  # and a window's context once for each window
        assert sum(n_read) <= N + window_len * -(-N // stride)


def test_loading_leaves_nothing_out(form):
    model = form.theirs
    assert not any(form.info.values()), form.info
    assert next(model.parameters()).dtype == torch.float32
    assert (model.decoder.head.weight is model.decoder.embed.weight) == (form.name == "tied")
    mask = torch.ones_like(TOKENS)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="attention_mask hides positions"):
        model(TOKENS, attention_mask=mask)
    with pytest.raises(ValueError, match=r"^position_ids: not supported by this model; leave it out$"):
        model(TOKENS, position_ids=torch.arange(N)[None])
    with pytest.raises(ValueError, match=r"^the vocabulary has 257 tokens and can't be resized to 300"):
        model.resize_token_embeddings(300)
    assert model.resize_token_embeddings(257) is model.decoder.embed


ALONE = """
import sys
sys.modules |= dict.fromkeys(["llp", "datamodules", "lightning", "lightning_fabric"])  # as if they weren't installed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained("export", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("export", trust_remote_code=True)
tokens = torch.load("tokens.pt")
with torch.no_grad():
    logits = model(tokens).logits
model.generation_config.eos_token_id = None
drawn = model.generate(**tokenizer("The left", return_tensors="pt"), max_new_tokens=45, do_sample=False)
torch.save([logits, drawn.tolist()], "results.pt")
"""


def test_without_llp(tmp_path):
    """In a process that can't import llp, its data modules or Lightning."""
    model, _ = export(tmp_path, exported.small("LLP"))
    torch.save(TOKENS, tmp_path / "tokens.pt")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": ""}
    command = [sys.executable, "-W", "ignore", "-c", ALONE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logits, drawn = torch.load(tmp_path / "results.pt")
    assert torch.equal(logits, logits_in_windows(model))
    assert drawn == greedy(model, model.tokens("The left").tolist())


def test_accumulated_gradients_are_those_of_one_batch(tmp_path):
    """Four texts with 2 to 11 labels each: in one batch, and one at a time with their gradients accumulated."""
    _, folder = export(tmp_path, exported.small("LLP", tie_embeddings=True))
    tokens = torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(1))
    labels = tokens.where(torch.arange(12) < torch.tensor([[3], [12], [5], [9]]), -100)
    labels[:, 0] = -100
    rows = [{"input_ids": row, "labels": of_row} for row, of_row in zip(tokens, labels, strict=True)]
    settings = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    settings |= {"report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "max_steps": 1}
    losses, weights = [], []
    for size in (4, 1):
        settings |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        arguments = transformers.TrainingArguments(output_dir=str(tmp_path / "trainer"), **settings)
        trainer = transformers.Trainer(opened(folder), arguments, train_dataset=rows)
        losses.append(trainer.train().training_loss)
        weights.append(trainer.model.state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(weights[1], weights[0])


# Tokenizers


def given(folder):
    """A byte-level tokenizer.json with a token of two line ends."""
    tokenizer = byte_level(["a text\n\nof lines\n\nand lines\n\n"] * 9, vocab_size=300)
    assert tokenizer.token_to_id("ĊĊ") is not None
    tokenizer.save(str(folder / "tokenizer.json"))
    return HuggingFaceTokenizer(str(folder))


@pytest.mark.parametrize("name", ["bytes", "pieces", "newline", "given"])
def test_tokens_are_llps(tmp_path, name):
    make = {"bytes": lambda folder: Bytes(), "given": given}.get(name, exported.trained_tokenizer)
    tokenizer = make(tmp_path)
    start = int(tokenizer.encode(["\n"])[0]) if name == "newline" else None
    model, folder = export(tmp_path, exported.small("LLP", vocab_size=tokenizer.vocab_size), tokenizer, start)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    for text in list(trial_texts(tokenizer.decode, tokenizer.vocab_size, seed=1))[::5]:
        tokens = theirs(text)["input_ids"]
        assert tokens == model.tokens(text)[0].tolist()
        # A newline as the start token is a token like any other.
        expected = f"\n{text}" if name == "newline" else text
        assert theirs.decode(tokens, skip_special_tokens=name != "newline") == expected


def test_pipeline_continues_as_llp_does(tmp_path):
    tokenizer = exported.trained_tokenizer(tmp_path)
    model = exported.small("LLP", vocab_size=500)
    # Bytes that are no characters are shown in other ways there.
    model.decoder.head.bias.data[[tokenizer._processor.is_byte(token) for token in range(500)]] = -1e4
    ours, folder = export(tmp_path, model, tokenizer)
    pipeline = transformers.pipeline("text-generation", model=str(folder), trust_remote_code=True)
    settings = {"max_new_tokens": N_NEW, "do_sample": False, "return_full_text": False}
    for prompt in ["The left", "a", "", "Ü 😀\n x"]:
        text = "".join(continue_text(ours, prompt, N_NEW, temperature=0))
        assert text
        assert pipeline(prompt, **settings)[0]["generated_text"].removesuffix("\n") == text.removesuffix("\n")
    with pytest.raises(ValueError, match="attention_mask hides positions"):
        pipeline(["a", "a longer one"], batch_size=2, **settings)


def test_the_harness_finds_what_the_definition_says(tmp_path):
    """Its windows don't overlap, and begin with one token of context; a pair has its whole context."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, folder = export(tmp_path, exported.small("LLP"))
    text, max_length = "the harness reads windows that don't overlap", 16
    settings = {"trust_remote_code": True, "max_length": max_length, "device": "cpu", "batch_size": 1}
    backend = HFLM(pretrained=str(folder), add_bos_token=False, **settings)
    rolling = Instance("loglikelihood_rolling", {}, (text,), 0)
    (found,) = backend.loglikelihood_rolling([rolling], disable_tqdm=True)
    tokens = torch.tensor([[256, *text.encode()]])
    parts = [tokens[:, start : start + max_length + 1] for start in range(0, len(text), max_length)]
    # The last one is as long as the others, and scores the rest alone.
    last = tokens[:, -max_length - 1 :]
    n_rest = parts[-1].shape[1] - 1
    assert 1 < n_rest < max_length
    with torch.no_grad():
        nats = [model.module.decoder.loss(part[:, :-1], part[:, 1:]).each[0].double() for part in (*parts[:-1], last)]
        pair = model.module.decoder.loss(tokens[:, 1:9], tokens[:, 2:10]).each[0, 2:].double()
    assert found == pytest.approx(-float(nats[0].sum() + nats[1].sum() + nats[2][-n_rest:].sum()), rel=1e-6)
    request = Instance("loglikelihood", {}, (text[:3], text[3:9]), 0)
    ((found, _),) = backend.loglikelihood([request], disable_tqdm=True)
    assert found == pytest.approx(-float(pair.sum()), rel=1e-6)


def rename_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    weights["decoder.final_norm.gain"] = weights.pop("decoder.final_norm.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_argument(folder):
    config = json.loads((folder / "config.json").read_text())
    config["patterns"][1]["arguments"]["segment_len"] = 5
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_tensor, r"decoder\.final_norm\.weight"),
        (change_argument, r"in config\.json was changed since the export"),
    ],
)
def test_a_changed_folder_is_refused(tmp_path, change, message):
    _, folder = export(tmp_path, exported.small("LLP"))
    change(folder)
    with pytest.raises(ValueError, match=message):
        opened(folder)
