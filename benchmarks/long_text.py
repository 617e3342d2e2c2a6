"""Peak memory of one optimizer step on the mean loss of a whole text, by the length of the text; see README.md.

python benchmarks/long_text.py --output benchmarks/results/long_text
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure

import llp
from datamodules import Bytes, PythonSource, TextFiles
from llp.evaluation.colours import COLOURS
from llp.evaluation.tables import aligned

SIZE: dict[str, Any] = {"dim": 128, "n_layers": 4, "n_heads": 2}
PIECE = 8192  # tokens
RETURNED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Lets the C library return what is freed, so that the peak is what is needed, and not what it keeps in fragments."""


class Way(NamedTuple):
    """How a text is trained on."""

    title: str
    architecture: str
    piece_len: int | None
    """Tokens of a piece; None: the whole text at once."""
    lengths: tuple[int, ...]
    """Of the texts; where memory grows with them, as far as it goes."""


WAYS = {
    "pieces": Way("LLP in pieces", "LLP", PIECE, (2**16, 2**18, 2**20)),
    "whole": Way("LLP in one pass", "LLP", None, (2**14, 2**16, 2**17)),
    "dense": Way("dense Transformer", "Transformer", None, (2**13, 2**14, 2**15)),
}


class StepFigures(Callback):
    """The loss of the step, and the norm of its gradient."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        grads = [parameter.grad for parameter in pl_module.decoder.parameters() if parameter.grad is not None]
        self.loss, self.grad_norm = pl_module.step_loss.item(), torch.nn.utils.get_total_norm(grads).item()


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")  # `getrusage` counts the parent's memory, too
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def sample_text(n_bytes: int) -> str:
    """The beginning of the sources of Python's standard library, one after the other, in ASCII."""
    texts, size = [], 0
    for document in PythonSource(tokenizer=Bytes()).texts("train"):
        text = b"".join(document.blocks).decode().encode("ascii", "replace").decode()
        texts.append(text)
        size += len(text)
        if size >= n_bytes:
            break
    return "".join(texts)[:n_bytes]


def measure(way: Way, n_tokens: int) -> dict[str, Any]:
    """Train one step on one document of so many tokens, its start token among them, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        for split, length in (("train", n_tokens - 1), ("validation", 100), ("test", 100)):
            (Path(folder) / "text" / split).mkdir(parents=True)
            (Path(folder) / "text" / split / "text.txt").write_text(sample_text(length), encoding="ascii")
        model = getattr(llp, way.architecture)(
            Bytes().vocab_size, schedule="halving", **SIZE, **({"segment_len": 64} if way.architecture == "LLP" else {})
        )
        in_pieces = way.piece_len is not None
        # A window of the whole text reads the token behind each position: the last one's is the beginning again.
        window_len = way.piece_len or n_tokens - 1
        data = TextFiles(
            path=f"{folder}/text",
            cache_dir=f"{folder}/cache",
            tokenizer=Bytes(),
            window_len=window_len,
            burn_in="reach" if in_pieces else 0,
            batch_size=1,
        )
        figures = StepFigures()
        torch.manual_seed(0)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=1,
            accumulate_grad_batches=n_tokens // window_len,
            limit_val_batches=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[figures],
        )
        before, started = peak_memory(), time.process_time()
        trainer.fit(model, data)
        return {
            "peak_bytes": peak_memory(),
            "bytes_before": before,
            "seconds": time.process_time() - started,
            "loss": figures.loss,
            "grad_norm": figures.grad_norm,
        }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Peak memory over the length of the text, both axes logarithmic."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, way in WAYS.items():
        own = [row for row in rows if row["way"] == name]
        style = "o-" if way.piece_len else "s--"
        lengths, peaks = [row["tokens"] for row in own], [row["peak_bytes"] / 2**20 for row in own]
        axes.plot(lengths, peaks, style, color=COLOURS[way.architecture], label=way.title)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set(xlabel="tokens of the text", ylabel="peak memory of the process, MiB")
    axes.set_title("One optimizer step on the mean loss of one text")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def table(rows: list[dict[str, Any]]) -> str:
    """All figures, a row per measurement."""
    cells = [["way", "tokens", "peak MiB", "before MiB", "CPU seconds", "loss", "gradient norm"]]
    for row in rows:
        memory = [f"{row[key] / 2**20:,.0f}" for key in ("peak_bytes", "bytes_before")]
        values = [f"{row['seconds']:,.0f}", f"{row['loss']:.6f}", f"{row['grad_norm']:.6f}"]
        cells.append([WAYS[row["way"]].title, f"{row['tokens']:,}", *memory, *values])
    return "\n".join(aligned(cells, n_left=1))


def main() -> None:
    """Measure each way at each length in a process of its own, and write table and picture after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/long_text"))
    parser.add_argument("--row", nargs=2, metavar=("WAY", "TOKENS"), help="measure this alone, and print it as JSON")
    options = parser.parse_args()
    if options.row is not None:
        name, n_tokens = options.row
        print(json.dumps({"way": name, "tokens": int(n_tokens), **measure(WAYS[name], int(n_tokens))}))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name, way in WAYS.items():
        for n_tokens in way.lengths:
            command = [sys.executable, __file__, "--row", name, str(n_tokens)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | RETURNED_AT_ONCE)
            if done.returncode:
                print(f"{way.title}, {n_tokens:,} tokens: failed with status {done.returncode}", file=sys.stderr)
                continue
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            (options.output / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            (options.output / "results.txt").write_text(table(rows) + "\n", encoding="utf-8")
            draw(rows, options.output / "memory.svg")
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
