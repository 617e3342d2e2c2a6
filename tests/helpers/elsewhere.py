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
    """Logits, the greedy continuation, what loading says, and what is refused."""
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
            "padded": refusal(lambda: model(tokens, attention_mask=masked)),
            "info": {name: list(map(str, value)) for name, value in info.items()},
            "mode": (model.training, str(next(model.parameters()).dtype)),
            "tied": model.decoder.head.weight is model.decoder.embed.weight,
        }
        model.generation_config.eos_token_id = None
        drawn = model.generate(tokens[:, :3], max_new_tokens=job["n_new"], do_sample=False)
    return {**result, "drawn": drawn.tolist()}


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
