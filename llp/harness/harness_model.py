"""A trained model as the harness sees one: texts scored and continued in the scoring windows."""

from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from llp.decoder.loss import CHUNK_LOGITS
from llp.errors import require
from llp.generation.continuation import continue_texts
from llp.loading import load
from llp.scoring.metric import ScoringBatch
from llp.scoring.windows import JOINED, ScoringWindow, in_one_pass, scoring_batches
from llp.text_model import TextModel


class HarnessModel(LM):
    """A `TrainingModule` for `lm_eval.evaluate`, whatever its architecture.

    Every text is a document of its own: it begins with the start token, which is context and never scored.

    Args:
        model: The model with its tokenizer, in evaluation mode.
        batch_size: How many texts or windows to compute side by side.

    Raises:
        SettingError: If the batch size can't be used.
    """

    def __init__(self, model: TextModel, batch_size: int = 8) -> None:
        super().__init__()
        require(batch_size >= 1, "batch_size", batch_size, "set it to 1 or more")
        self.model, self.batch_size = model, batch_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.inference_mode()
    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text: minus the nats that `llp test` finds for it."""
        texts = [self.model.tokens(*request.args)[0] for request in requests]  # (N + 1,) each
        nats = torch.zeros(len(texts), dtype=torch.float64, device=self.device)
        batches = self._scoring_batches([len(text) - 1 for text in texts])
        for batch in tqdm(batches, desc="scoring texts", disable=disable_tqdm or None):
            rows = torch.stack([texts[window.document][window.start : window.stop + 1] for window in batch])
            targets = rows[:, rows.shape[1] - batch[0].n_scored :]  # (B, S)
            numbers = torch.tensor([window.document for window in batch], device=self.device)
            each = self.model.module.score_nats(ScoringBatch(rows[:, :-1], targets, numbers))  # (B, S)
            nats.index_add_(0, numbers, each.double().sum(dim=1))
        return (-nats).tolist()

    def _scoring_batches(self, n_tokens: list[int]) -> list[list[ScoringWindow]]:
        """The windows in which `llp test` scores documents of these lengths."""
        window_len, stride = self.model.window
        batches = scoring_batches(n_tokens, window_len, stride, self.batch_size)
        if not self.model.module.geometry.scores_as_one_pass(window_len, stride):
            return batches
        return in_one_pass(batches, window_len + JOINED * stride, self.batch_size * window_len)

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation of a context, and whether greedy decoding gives it.

        Each token is predicted from what precedes it, in the window in which `llp generate` would draw it. Contexts of
        equal length are read side by side, and one with several continuations once.
        """
        pairs = [self.encode_pair(*request.args) for request in requests]
        outcomes: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        with tqdm(total=len(pairs), desc="scoring continuations", disable=disable_tqdm or None) as bar:
            for numbers in self._of_equal_context(pairs):
                for number, outcome in zip(numbers, self._score([pairs[n] for n in numbers]), strict=True):
                    outcomes[number] = outcome
                bar.update(len(numbers))
        return outcomes

    def encode_pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of a context, with the start token, and those of its continuation.

        They are the tokens of the whole text, split where the context's own end; white space at the end of the context
        belongs to the continuation, as everywhere in the harness. Where the tokenizer joins the two, the token that has
        a part of both is the continuation's.
        """
        whole = self.model.tokens(context + continuation)[0].tolist()
        alone = self.model.tokens(context.rstrip())[0].tolist()
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(whole, alone, strict=False))
        n_context = sum(1 for _ in shared)
        return tuple(whole[:n_context]), tuple(whole[n_context:])

    def _of_equal_context(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[list[int]]:
        """Numbers of pairs whose contexts are equally long, those of the same context together."""
        order = sorted(range(len(pairs)), key=lambda number: (len(pairs[number][0]), pairs[number]))
        for _, group in groupby(order, key=lambda number: len(pairs[number][0])):
            numbers = [*group]
            for first in range(0, len(numbers), self.batch_size):
                yield numbers[first : first + self.batch_size]

    def _score(self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Iterator[tuple[float, bool]]:
        """Log-likelihood and greediness of continuations whose contexts are equally long."""
        model, n_tokens = self.model, torch.tensor([len(continuation) for _, continuation in pairs])
        longest = int(n_tokens.max())
        targets = torch.zeros(len(pairs), longest, dtype=torch.int64)  # (B, S); what is behind a text changes nothing
        for row, (_, continuation) in zip(targets, pairs, strict=True):
            row[: len(continuation)] = torch.tensor(continuation)
        contexts = list(dict.fromkeys(context for context, _ in pairs))
        rows = torch.tensor(contexts)
        cache = model.module.new_cache(len(contexts), model.window)
        if rows.shape[1] > 1:
            model.module.extend(rows[:, :-1].to(self.device), cache, n_logits=1)
        of_pairs = [contexts.index(context) for context, _ in pairs]
        cache.select(of_pairs)
        inputs = torch.cat((rows[of_pairs, -1:], targets[:, :-1]), dim=1)  # (B, S)
        logs, hits = torch.zeros(len(pairs), dtype=torch.float64), torch.ones(len(pairs), dtype=torch.bool)
        n = max(1, CHUNK_LOGITS[self.device.type] // (len(pairs) * model.module.hparams["vocab_size"]))
        for first in range(0, longest, n):
            logits, cache = model.module.extend(inputs[:, first : first + n].to(self.device), cache)  # (B, n, V)
            wanted = targets[:, first : first + n].to(self.device)
            is_there = torch.arange(first, first + wanted.shape[1]) < n_tokens.unsqueeze(1)  # (B, n)
            log_p = logits.double().log_softmax(-1).gather(2, wanted.unsqueeze(2)).squeeze(2).cpu()
            logs += log_p.masked_fill(~is_there, 0).sum(dim=1)
            hits &= ((logits.argmax(-1) == wanted).cpu() | ~is_there).all(dim=1)
        return zip(logs.tolist(), hits.tolist(), strict=True)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context up to a stop string, as `llp generate` draws it.

        It is greedy unless the task samples; then each repetition of a request has a seed of its own.
        """
        texts = [""] * len(requests)
        settings = [_settings(request.args[1]) for request in requests]
        order = sorted(range(len(requests)), key=lambda number: repr(settings[number]))
        with tqdm(total=len(requests), desc="continuing texts", disable=disable_tqdm or None) as bar:
            for _, group in groupby(order, key=lambda number: repr(settings[number])):
                numbers = [*group]
                prompts: dict[str, list[int]] = {}
                for number in numbers:
                    prompts.setdefault(requests[number].args[0], []).append(number)
                for number, text in self._continued(prompts, settings[numbers[0]]):
                    texts[number] = text
                    bar.update()
        return texts

    def _continued(self, prompts: dict[str, list[int]], settings: dict[str, Any]) -> Iterator[tuple[int, str]]:
        """The continuations of prompts, for the numbers of the requests that ask for them."""
        n_samples = 1 if settings["temperature"] == 0 else max(map(len, prompts.values()))
        completed = continue_texts(self.model, prompts, **settings, n_samples=n_samples, batch_size=self.batch_size)
        for numbers, completions in zip(prompts.values(), completed, strict=True):
            for place, number in enumerate(numbers):
                yield number, completions[place % n_samples]


class CheckpointModel(HarnessModel):
    """What the harness's own command line makes of `--model llp --model_args ckpt_path=…`.

    Args:
        ckpt_path: A run's folder, a checkpoint or an exported folder.
        batch_size: How many texts or windows to compute side by side.
        device: Where to compute; by default on a GPU if there is one.
        max_batch_size: Not used: a batch has its size.

    Raises:
        SettingError: If there is no model with a tokenizer, or the batch size can't be used.
    """

    def __init__(
        self, ckpt_path: str, batch_size: int | str = 8, device: str | None = None, max_batch_size: int | None = None
    ) -> None:
        is_number = str(batch_size).isdecimal()
        require(is_number, "batch_size", batch_size, "it is not found automatically; set it to a number")
        model = load(ckpt_path).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        super().__init__(model.as_text_model(), int(batch_size))


def _settings(asked: dict[str, Any]) -> dict[str, Any]:
    """The settings of `continue_texts` for a request's `generation_kwargs`."""
    given = normalize_gen_kwargs(asked)
    return {
        "max_tokens": given["max_gen_toks"],
        "temperature": given.get("temperature", 1.0) if given["do_sample"] else 0.0,
        "top_k": given.get("top_k") or None,
        "top_p": given.get("top_p", 1.0),
        "stop": [text for text in given["until"] if text],
    }
