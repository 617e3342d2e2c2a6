"""Opens exported folders as other people do: with transformers alone. Run by `exported.elsewhere`, never imported."""

import json
import sys
from pathlib import Path


class Absent:
    """Makes packages absent that are installed here."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("llp", "datamodules", "lightning", "lightning_fabric"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
sys.path = [path for path in sys.path if not (Path(path or ".") / "llp").is_dir()]

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline  # noqa: E402

torch.set_num_threads(1)


def refusal(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def model_job(job):
    """Logits, states, losses and continuations, what loading says, and what is refused."""
    load = AutoModelForCausalLM.from_pretrained
    model, info = load(job["folder"], trust_remote_code=True, output_loading_info=True)
    tokens = torch.tensor(job["tokens"])
    masked = torch.ones_like(tokens)
    masked[0, 0] = 0
    with torch.no_grad():
        result = {
            "logits": model(tokens).logits,
            "last": model(tokens, logits_to_keep=3).logits,
            "loss": model(tokens, labels=tokens).loss,
            "share": model(tokens, labels=tokens, num_items_in_batch=1000).loss,
            "states": model(tokens, output_hidden_states=True).hidden_states,
            "tuple": model(tokens, labels=tokens, return_dict=False),
            "padded": refusal(lambda: model(tokens, attention_mask=masked)),
            "positions": refusal(lambda: model(tokens, position_ids=torch.arange(tokens.shape[1])[None])),
            "resized": refusal(lambda: model.resize_token_embeddings(300)),
            "same size": model.resize_token_embeddings(257) is model.decoder.embed,
            "info": {name: list(map(str, value)) for name, value in info.items()},
            "mode": (model.training, str(next(model.parameters()).dtype)),
            "tied": model.decoder.head.weight is model.decoder.embed.weight,
        }
        result["cached"] = cached(model, tokens)
        model.generation_config.eos_token_id = None
        result["drawn"] = model.generate(tokens[:, :3], max_new_tokens=job["n_new"], do_sample=False).tolist()
        for name, settings in WAYS_TO_DRAW.items() if job["draws"] else ():
            for use_cache in (True, False):
                torch.manual_seed(0)
                drawn = model.generate(tokens[:, :3], max_new_tokens=12, use_cache=use_cache, **settings)
                result[f"{name} {use_cache}"] = drawn.tolist()
    return {**result, "gradients": [gradient(model, tokens, checkpoints) for checkpoints in (False, True)]}


WAYS_TO_DRAW = {"beams": {"num_beams": 3}, "samples": {"do_sample": True, "num_return_sequences": 2}}


def cached(model, tokens):
    """Logits of each next token, with a cache and without; how many positions the cache computes and keeps."""
    n_read, cache, logits, n_kept = [], None, [], 0
    hook = model.decoder.embed.register_forward_hook(lambda module, inputs, output: n_read.append(output.shape[1]))
    for n in range(1, tokens.shape[1] + 1):
        out = model(tokens[:, :n], next_token_only=True, use_cache=True, kv_cache=cache)
        cache, logits = out.kv_cache, [*logits, out.logits]
        n_kept = max(n_kept, *(len(buffer[0, 0]) for layer in cache.kv_cache.layers for buffer in layer._buffers))
    hook.remove()
    alone = [model(tokens[:, :n], next_token_only=True).logits for n in range(1, tokens.shape[1] + 1)]
    return {"logits": torch.cat(logits, 1), "alone": torch.cat(alone, 1), "n_read": sum(n_read), "n_kept": n_kept}


def gradient(model, tokens, checkpoints):
    """That of the embeddings, and how often the first layer was computed."""
    model.gradient_checkpointing_enable() if checkpoints else model.gradient_checkpointing_disable()
    model.train().zero_grad()
    calls = []
    hook = model.decoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(None))
    torch.manual_seed(0)
    model(tokens, labels=tokens).loss.backward()
    hook.remove()
    return model.decoder.embed.weight.grad.clone(), len(calls)


def trainer_job(job):
    """Weights after one step of SGD by transformers' Trainer, with the batches accumulated."""
    from transformers import Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(job["folder"], trust_remote_code=True)
    rows = [{"input_ids": row, "labels": labels} for row, labels in zip(job["tokens"], job["labels"], strict=True)]
    settings = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    settings |= {"report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "max_steps": 1}
    settings |= {"per_device_train_batch_size": job["batch_size"], "gradient_accumulation_steps": job["accumulation"]}
    trainer = Trainer(model, TrainingArguments(output_dir=str(folder / "trainer"), **settings), train_dataset=rows)
    loss = trainer.train().training_loss
    return {"weights": dict(model.state_dict()), "loss": loss}


def tokens_job(job):
    """Tokens of texts, and the texts of these."""
    tokenizer = AutoTokenizer.from_pretrained(job["folder"], trust_remote_code=True)
    rows = [tokenizer(text)["input_ids"] for text in job["texts"]]
    return {"tokens": rows, "texts": [tokenizer.decode(row, skip_special_tokens=job["skip"]) for row in rows]}


def pipeline_job(job):
    """Continuations of prompts, one at a time, and what is said of two at once."""
    generator = pipeline("text-generation", model=job["folder"], trust_remote_code=True)
    settings = {"max_new_tokens": job["n_new"], "do_sample": False, "return_full_text": False}
    texts = [generator(prompt, **settings)[0]["generated_text"] for prompt in job["prompts"]]
    together = refusal(lambda: generator(["a", "a longer one"], batch_size=2, **settings))
    return {"texts": texts, "together": together}


def harness_job(job):
    """What the evaluation harness's own backend makes of a text, and of a continuation."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    settings = {"trust_remote_code": True, "max_length": job["max_length"], "device": "cpu", "batch_size": 1}
    backend = HFLM(pretrained=job["folder"], add_bos_token=False, **settings)
    text, (context, continuation) = job["text"], job["pair"]
    rolling = backend.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    pair = backend.loglikelihood([Instance("loglikelihood", {}, (context, continuation), 0)], disable_tqdm=True)
    return {"rolling": rolling[0], "pair": pair[0]}


def refused_job(job):
    """What loading says of a folder that is no longer what was exported."""
    load = AutoModelForCausalLM.from_pretrained
    return refusal(lambda: load(job["folder"], trust_remote_code=True))


folder = Path(sys.argv[1])
jobs = json.loads((folder / "jobs.json").read_text())
results = [globals()[f"{job['kind']}_job"](job) for job in jobs]
assert not {"llp", "lightning"} & set(sys.modules)
torch.save(results, folder / "results.pt")
