"""The first snippet of docs/pretrained.md, as it stands there, with a small model."""

import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import llp

PAGE = Path(__file__).parents[2] / "docs/pretrained.md"


def test_the_first_snippet_continues_a_book(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained("FOLDER_OR_HUB_ID")
    torch.manual_seed(0)
    size = {"vocab_size": 256, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2)).save_pretrained("FOLDER_OR_HUB_ID")
    Path("book.txt").write_text("It was the best of times. " * 200)
    snippet = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    space = {"llp": llp}
    exec(snippet, space)
    assert space["tokens"].shape == (1, 5200 + 100)
    assert capsys.readouterr().out
