"""The model card of an exported folder: what the model is, its metrics and their protocol, how to load and cite it."""

from pathlib import Path
from typing import Any

import yaml

import llp
from llp.atomic_files import checked_json, run_folder
from llp.checkpoints import reading
from llp.errors import SettingError
from llp.export.fast_tokenizer import FastTokenizer
from llp.training_module import TrainingModule

_METRICS = {
    "loss": "loss in nats",
    "perplexity": "perplexity per token",
    "word_perplexity": "perplexity per word",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
}

_CARD = """\
---
{front}---
# {name}

A language model of the architecture `{architecture}` of [long-lora-perceiver](https://arxiv.org/abs/2412.06106)
{version}, with {n_parameters:,} parameters in {dtype}, trained for {steps:,} steps{tokens} on {data}.

## Use

```sh
pip install torch transformers
```

```python
{code}
```

`trust_remote_code=True` runs `modeling_llp.py` of this folder, which is llp's own decoder in one file: read it first.
With `pip install "long-lora-perceiver[export]"`, `llp generate --ckpt_path FOLDER` and `llp test --ckpt_path FOLDER`
take the folder like a checkpoint, and execute nothing in it.

## Metrics

{metrics}

## Limitations

- The model was trained on text only: it follows no instructions, and its output is not filtered.
- There is no cache: each new token is computed from its whole window, so `generate` is slower than `llp generate`.
- There is no padding: the texts of a batch must be equally long; a mask that hides positions is refused.
- A text is scored in windows of {window_len:,} tokens with a stride of {stride:,}, as by `llp test`; a document begins
  with the start token{start}.
- {tokenizer}.

## Citation

```bibtex
@article{{mahmood2024enhanced,
  title = {{Enhanced Computationally Efficient Long LoRA Inspired Perceiver Architectures for Auto-Regressive Language
           Modeling}},
  author = {{Mahmood, Kaleel and Huang, Shaoyi}},
  journal = {{arXiv preprint arXiv:2412.06106}},
  year = {{2024}}
}}
```
"""

_CODE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
tokens = tokenizer("The history of", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=50)[0], skip_special_tokens=True))
nats = model(**tokens, labels=tokens["input_ids"]).loss  # per token, after the start token"""

_CODE_OF_TOKENS = """\
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
logits = model(torch.tensor([[1, 2, 3]])).logits  # of the token after each"""

_PROTOCOL = """\
`llp test` scored {tokens:,} tokens of the {split} split of {data}, each once, in windows of {window_len:,} tokens,
stride {stride:,}; a token was predicted from {context:,.1f} tokens on average. Words counted: {words:,}, {word_count};
bytes: {bytes:,}. The precision was {precision}{probed}.

Perplexity per token depends on the tokenizer. Perplexity per word and bits per byte can be compared if the same words
and bytes of the same text are counted; the task `wikitext` of the evaluation harness, for one, counts other words."""


def model_card(
    ckpt_path: Path,
    model: TrainingModule,
    checkpoint: dict[str, Any],
    record: dict[str, Any],
    n_parameters: int,
    tokenizer: FastTokenizer | None,
) -> str:
    """The content of `README.md`, with the metrics of the run's `test.json` if they are of this checkpoint.

    Args:
        ckpt_path: The checkpoint.
        model: Of its class and settings; its weights are not needed.
        checkpoint: Its content.
        record: What the folder keeps of it.
        n_parameters: Number of weights.
        tokenizer: The tokenizer in the folder, or None.

    Raises:
        SettingError: If `test.json` is damaged.
    """
    name, report = run_folder(ckpt_path).name, _report(ckpt_path, record)
    data = "its data"
    if checkpoint["config"] is not None:
        data = str(yaml.safe_load(checkpoint["config"])["data"]["class_path"]).rpartition(".")[2]
    trained = reading.training_record(checkpoint)
    fast = tokenizer is not None and len(tokenizer.files) > 0
    return _CARD.format(
        front=yaml.safe_dump(_front(name, data, report), sort_keys=False, allow_unicode=True),
        name=name,
        architecture=type(model).__name__,
        version=llp.__version__,
        n_parameters=n_parameters,
        dtype=record["exported"]["dtype"],
        steps=trained["step"],
        tokens="" if trained["trained_tokens"] is None else f", {trained['trained_tokens']:,} tokens,",
        data=data,
        code=_CODE if fast else _CODE_OF_TOKENS,
        metrics=_metrics(report, data) if report else "None of this checkpoint: `llp test` had not scored it.",
        window_len=record["model"]["window_len"],
        stride=record["model"]["stride"],
        start=", which the tokenizer puts there" if fast else "",
        tokenizer="It has no tokenizer: it was not trained on text" if tokenizer is None else tokenizer.note,
    )


def _report(ckpt_path: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """The test of this very checkpoint on the whole split, or None if the run's folder has none."""
    path = run_folder(ckpt_path) / "test.json"
    if not path.is_file():
        return None
    try:
        report = checked_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError("test.json", path, f"it is damaged ({error}); remove it, or run `llp test` again") from error
    protocol = report["protocol"]
    is_its = protocol["checkpoint_sha256"] == record["exported"]["checkpoint_sha256"] and protocol["complete"]
    return report if is_its else None


def _front(name: str, data: str, report: dict[str, Any] | None) -> dict[str, Any]:
    """The metadata that the Hub reads."""
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["long-lora-perceiver", "llp", "custom_code"],
    }
    if report is None:
        return front
    row = report["rows"][0]
    result = {
        "task": {"type": "text-generation", "name": "Language modeling"},
        "dataset": {"type": data, "name": data, "split": row["split"]},
        "metrics": [
            {"type": metric, "value": row[metric], "name": words}
            for metric, words in _METRICS.items()
            if row.get(metric) is not None
        ],
    }
    return {**front, "model-index": [{"name": name, "results": [result]}]}


def _metrics(report: dict[str, Any], data: str) -> str:
    row, protocol = report["rows"][0], report["protocol"]
    lines = ["| metric | value |", "| --- | ---: |"]
    lines += [f"| {words} | {row[metric]:,.4f} |" for metric, words in _METRICS.items() if row.get(metric) is not None]
    table = "\n".join(lines)
    if "words" not in row:  # of a task
        return f"{table}\n\n`llp test` scored {row['labels']:,} labels of the {row['split']} split of {data}."
    is_probed = protocol.get("certificate", {}).get("causal")
    values = {
        **{name: row[name] for name in ("tokens", "split", "words", "bytes")},
        **{name: protocol[name] for name in ("window_len", "stride", "word_count", "precision")},
        "data": data,
        "context": protocol["context_mean"],
        "probed": ", and probes found no logit that depends on a later token" if is_probed else "",
    }
    return f"{table}\n\n{_PROTOCOL.format(**values)}"
