"""The model card of an exported folder: what the model is, its metrics and their protocol, how to load and cite it."""

from pathlib import Path
from typing import Any

import yaml

import llp
from llp.atomic_files import checked_json, run_folder
from llp.checkpoints import reading
from llp.errors import SettingError
from llp.export.fast_tokenizer import FastTokenizer
from llp.language_model import LanguageModel

_METRICS = {
    "loss": "loss in nats",
    "perplexity": "perplexity per token",
    "word_perplexity": "perplexity per word",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
}

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [long-lora-perceiver, llp, custom_code]
---
# {name}

A language model of the architecture `{architecture}` of [long-lora-perceiver](https://arxiv.org/abs/2412.06106)
{version}, with {n_parameters:,} parameters in {dtype}, trained for {steps:,} steps{tokens} on {data}.

## Use

```python
{code}
```

`trust_remote_code=True` runs `modeling_llp.py` of this folder, which is llp's own decoder in one file: read it first.
`llp generate --ckpt_path FOLDER` and `llp test --ckpt_path FOLDER` execute nothing in it.

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

Kaleel Mahmood and Shaoyi Huang: Enhanced Computationally Efficient Long LoRA Inspired Perceiver Architectures for
Auto-Regressive Language Modeling, 2024, [arXiv 2412.06106](https://arxiv.org/abs/2412.06106).
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


def model_card(
    ckpt_path: Path,
    model: LanguageModel,
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
    data = "its data"
    if checkpoint["config"] is not None:
        data = str(yaml.safe_load(checkpoint["config"])["data"]["class_path"]).rpartition(".")[2]
    trained = reading.training_record(checkpoint)
    fast = tokenizer is not None and len(tokenizer.files) > 0
    return _CARD.format(
        name=run_folder(ckpt_path).name,
        architecture=type(model).__name__,
        version=llp.__version__,
        n_parameters=n_parameters,
        dtype=record["exported"]["dtype"],
        steps=trained["step"],
        tokens="" if trained["trained_tokens"] is None else f", {trained['trained_tokens']:,} tokens,",
        data=data,
        code=_CODE if fast else _CODE_OF_TOKENS,
        metrics=_metrics(ckpt_path, record, data) or "None of this checkpoint: `llp test` had not scored it.",
        window_len=record["model"]["window_len"],
        stride=record["model"]["stride"],
        start=", which the tokenizer puts there" if fast else "",
        tokenizer="It has no tokenizer: it was not trained on text" if tokenizer is None else tokenizer.note,
    )


def _metrics(ckpt_path: Path, record: dict[str, Any], data: str) -> str | None:
    """The test of this very checkpoint on the whole split, or None if the run's folder has none."""
    path = run_folder(ckpt_path) / "test.json"
    if not path.is_file():
        return None
    try:
        report = checked_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError("test.json", path, f"it is damaged ({error}); remove it, or run `llp test` again") from error
    row, protocol = report["rows"][0], report["protocol"]
    if protocol["checkpoint_sha256"] != record["exported"]["checkpoint_sha256"] or not protocol["complete"]:
        return None
    lines = ["| metric | value |", "| --- | ---: |"]
    lines += [f"| {words} | {row[metric]:,.4f} |" for metric, words in _METRICS.items() if row.get(metric) is not None]
    lines += [
        "",
        f"`llp test` scored the {row['split']} split of {data} in windows of {protocol['window_len']:,} tokens, ",
    ]
    lines[-1] += f"stride {protocol['stride']:,}, in the precision {protocol['precision']}."
    if "words" in row:  # of a text
        lines.append(f"Words counted: {row['words']:,}, {protocol['word_count']}; bytes: {row['bytes']:,}.")
    return "\n".join(lines)
