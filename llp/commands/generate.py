"""`llp generate`: continue texts with a trained model, which needs nothing but its checkpoint."""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from llp.atomic_files import whole_file
from llp.commands.trained_model import TrainedModel
from llp.errors import SettingError, require
from llp.generation.continuation import continue_text, continue_texts
from llp.text_model import TextModel


def generate(
    trained: TrainedModel,
    stop: list[str],
    prompt: str = "",
    prompts: Path | None = None,
    output: Path | None = None,
    **settings: Any,
) -> None:
    """Continue a prompt and print the text as it is generated, or continue several texts side by side.

    Args:
        trained: The model.
        stop: A text ends before any of these strings.
        prompt: The text to continue.
        prompts: A file of prompts: .txt with one per line, or .jsonl with objects that have a "prompt".
        output: A .jsonl file for the objects with "prompt" and "completions"; by default they are printed.
        settings: Arguments of `continue_texts`.
    """
    model, entries = trained.loaded.as_text_model(), _entries(prompt, prompts)
    settings["stop"] = stop
    with trained.autocast():
        if output is not None:
            remedy = "name a file in a folder that exists"
            require(output.parent.is_dir() and not output.is_dir(), "output", output, remedy)
            with whole_file(output) as temporary, temporary.open("w", encoding="utf-8") as stream:
                _write_lines(model, entries, stream, settings)
        elif prompts is not None:
            _write_lines(model, entries, sys.stdout, settings)
        elif settings["n_samples"] > 1:
            (completions,) = continue_texts(model, [prompt], **settings)
            print("\n\n".join(prompt + completion for completion in completions))
        else:
            of_one = {name: value for name, value in settings.items() if name not in ("n_samples", "batch_size")}
            print(prompt, end="", flush=True)
            for piece in continue_text(model, prompt, **of_one):
                print(piece, end="", flush=True)
            print()


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


def _write_lines(model: TextModel, entries: list[dict[str, Any]], stream: TextIO, settings: dict[str, Any]) -> None:
    """Write the line of each prompt as soon as its completions are complete."""
    of_prompts = continue_texts(model, [entry["prompt"] for entry in entries], **settings)
    for entry, completions in zip(entries, of_prompts, strict=True):
        print(json.dumps({**entry, "completions": completions}, ensure_ascii=False), file=stream, flush=True)
