"""`llp generate`: continue texts with a trained model, which needs nothing but its checkpoint."""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from llp.atomic_files import whole_file
from llp.commands.trained_model import TrainedModel
from llp.errors import SettingError, require
from llp.generation.continuation import Completion, continue_text, continue_texts
from llp.text_model import TextModel


def generate(
    trained: TrainedModel,
    stop: list[str],
    prompt: str = "",
    prompts: Path | None = None,
    output: Path | None = None,
    **settings: Any,
) -> None:
    """Continue a prompt, as the text is drawn, or several texts side by side; then say how fast it was.

    Args:
        trained: The model.
        stop: A text ends before any of these.
        prompt: The text to continue.
        prompts: A file of prompts: .txt, one in each line, or .jsonl, objects with "prompt".
        output: A .jsonl file for objects with "prompt" and "completions"; else they are printed.
        settings: Those of `continue_texts`.
    """
    model, entries = trained.loaded.as_text_model(), _entries(prompt, prompts)
    settings["stop"] = stop
    started = time.perf_counter()
    with trained.autocast():
        if output is not None:
            n_tokens = _write(model, entries, output, settings)
        elif prompts is not None:
            n_tokens = _write_lines(model, entries, sys.stdout, **settings)
        elif settings["n_samples"] == 1:
            n_tokens = _stream(model, prompt, settings)
        else:
            n_tokens = _show(model, prompt, settings)
    seconds = time.perf_counter() - started
    print(f"{n_tokens:,} tokens in {seconds:.1f} s: {n_tokens / seconds:,.1f} tokens/s", file=sys.stderr)


def _entries(prompt: str, path: Path | None) -> list[dict[str, Any]]:
    """Objects with "prompt", and with whatever else a line of the file holds."""
    if path is None:
        return [{"prompt": prompt}]
    require(prompt == "", "prompt", repr(prompt), f"the prompts are those of {path}; leave out one of the two")
    path = path.expanduser()
    remedy = "it is neither .txt, with one prompt in each line, nor .jsonl; rename or convert it"
    require(path.suffix in (".txt", ".jsonl"), "prompts", path, remedy)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not `splitlines`: a prompt may hold other separators
    except UnicodeDecodeError as error:
        raise SettingError("prompts", path, "it is not UTF-8; convert it") from error
    entries = [_entry(line, number, path) for number, line in enumerate(lines, start=1) if line.strip()]
    require(len(entries) > 0, "prompts", path, "there is no prompt in it; add one")
    return entries


def _entry(line: str, number: int, path: Path) -> dict[str, Any]:
    if path.suffix == ".txt":
        return {"prompt": line}
    try:
        entry: Any = json.loads(line)
    except ValueError:
        entry = None
    remedy = f'line {number} is no object with a text under "prompt"; correct it'
    require(isinstance(entry, dict) and isinstance(entry.get("prompt"), str), "prompts", path, remedy)
    return entry


def _write(model: TextModel, entries: list[dict[str, Any]], path: Path, settings: dict[str, Any]) -> int:
    """Write a file of completions, whole or not at all; returns the number of drawn tokens."""
    require(path.parent.is_dir() and not path.is_dir(), "output", path, "name a file in a folder that exists")
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        return _write_lines(model, entries, stream, **settings)


def _write_lines(model: TextModel, entries: list[dict[str, Any]], stream: TextIO, **settings: Any) -> int:
    """Write the line of each prompt as soon as its completions are complete; returns the number of tokens."""
    n_tokens = 0
    of_prompts = continue_texts(model, [entry["prompt"] for entry in entries], **settings)
    for entry, completions in zip(entries, of_prompts, strict=True):
        line = {**entry, "completions": [completion.text for completion in completions]}
        print(json.dumps(line, ensure_ascii=False), file=stream, flush=True)
        n_tokens += _count(completions)
    return n_tokens


def _stream(model: TextModel, prompt: str, settings: dict[str, Any]) -> int:
    """Print a prompt and its continuation, as it is drawn; returns the number of drawn tokens."""
    of_one = {name: value for name, value in settings.items() if name not in ("n_samples", "batch_size")}
    print(prompt, end="", flush=True)
    n_pieces = 0
    for piece in continue_text(model, prompt, **of_one):
        print(piece, end="", flush=True)
        n_pieces += 1
    print()
    return n_pieces - 1  # the last one is of no token


def _show(model: TextModel, prompt: str, settings: dict[str, Any]) -> int:
    """Print several continuations of a prompt, with blank lines between them; returns the number of drawn tokens."""
    (completions,) = continue_texts(model, [prompt], **settings)
    print("\n\n".join(prompt + completion.text for completion in completions))
    return _count(completions)


def _count(completions: Iterable[Completion]) -> int:
    return sum(completion.n_tokens for completion in completions)
