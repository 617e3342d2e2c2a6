"""Peak memory of one optimizer step on the mean loss of a whole text, by the length of the text; see README.md.

python benchmarks/long_text.py --output benchmarks/results/long_text
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure

import llp
from datamodules import Bytes, PythonSource, TextFiles
from llp.evaluation.colours import COLOURS
from llp.training_module import TrainingModule
from measuring import in_own_process, memory

SIZES = {"dim": 128, "n_layers": 4, "n_heads": 2, "schedule": "halving"}
PIECE_LEN = 8192


class Arm(NamedTuple):
    """How a text is trained on."""

    title: str
    architecture: str
    piece_len: int | None
    """Tokens of a piece, or None for the whole text at once."""
    lengths: tuple[int, ...]
    """Of the texts; where memory grows with them, as far as it goes."""


ARMS = {
    "pieces": Arm("LLP in pieces", "LLP", PIECE_LEN, (2**16, 2**18, 2**20)),
    "whole": Arm("LLP in one pass", "LLP", None, (2**14, 2**16, 2**17)),
    "dense": Arm("dense Transformer", "Transformer", None, (2**13, 2**14, 2**15)),
}


class StepMetrics(Callback):
    """The loss of the step, and the norm of its gradient."""

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: TrainingModule, optimizer: torch.optim.Optimizer
    ) -> None:
        grads = [parameter.grad for parameter in pl_module.decoder.parameters() if parameter.grad is not None]
        self.loss, self.grad_norm = pl_module.step_loss.item(), torch.nn.utils.get_total_norm(grads).item()


def write_text(folder: Path, n_tokens: int) -> None:
    """A document of so many tokens with its start token: sources of Python's standard library, in ASCII."""
    documents = PythonSource(tokenizer=Bytes()).texts("train")
    texts = (b"".join(document.blocks).decode().encode("ascii", "replace") for document in documents)
    text = b""
    while len(text) < n_tokens:
        text += next(texts)
    for split, length in (("train", n_tokens - 1), ("validation", 100), ("test", 100)):
        (folder / split).mkdir(parents=True)
        (folder / split / "text.txt").write_bytes(text[:length])


def measure(arm: Arm, n_tokens: int) -> dict[str, float]:
    """Train one step on one document in this process."""
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "text", n_tokens)
        segments = {"segment_len": 64} if arm.architecture == "LLP" else {}
        model = getattr(llp, arm.architecture)(Bytes().vocab_size, **SIZES, **segments)
        # A window of the whole text reads the token behind each position: the last one's is the beginning again.
        window_len = arm.piece_len or n_tokens - 1
        data = TextFiles(
            path=f"{folder}/text",
            cache_dir=f"{folder}/cache",
            tokenizer=Bytes(),
            window_len=window_len,
            burn_in="reach" if arm.piece_len else 0,
            batch_size=1,
        )
        metrics = StepMetrics()
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
            callbacks=[metrics],
        )
        row = {"bytes_before": memory(peak=True)}
        started = time.process_time()
        trainer.fit(model, data)
        row |= {"peak_bytes": memory(peak=True), "seconds": time.process_time() - started}
        return row | {"loss": metrics.loss, "grad_norm": metrics.grad_norm}


def table(rows: pd.DataFrame) -> str:
    """All measurements, a line each."""
    shown = pd.DataFrame(
        {
            "": [ARMS[name].title for name in rows["way"]],
            "tokens": rows["tokens"].map("{:,}".format),
            "peak MiB": (rows["peak_bytes"] / 2**20).map("{:,.0f}".format),
            "before MiB": (rows["bytes_before"] / 2**20).map("{:,.0f}".format),
            "CPU seconds": rows["seconds"].map("{:.0f}".format),
            "loss": rows["loss"].map("{:.6f}".format),
            "gradient norm": rows["grad_norm"].map("{:.6f}".format),
        }
    )
    return shown.to_string(index=False)


def plot(rows: pd.DataFrame) -> Figure:
    """Peak memory against the length of the text, both axes logarithmic."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, of_arm in rows.groupby("way", sort=False):
        arm = ARMS[str(name)]
        style = "o-" if arm.piece_len else "s--"
        color = COLOURS[arm.architecture]
        axes.plot(of_arm["tokens"], of_arm["peak_bytes"] / 2**20, style, color=color, label=arm.title)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set(xlabel="tokens of the text", ylabel="peak memory of the process, MiB")
    axes.set_title("One optimizer step on the mean loss of one text")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main() -> None:
    """Measure each arm at each length in a process of its own, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/long_text"))
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    # The C library of the processes returns freed memory at once, so that their peak is what is needed.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
    rows: list[dict[str, str | float]] = []
    for name, arm in ARMS.items():
        for n_tokens in arm.lengths:
            rows.append({"way": name, "tokens": n_tokens, **in_own_process(measure, arm, n_tokens)})
            frame = pd.DataFrame(rows)
            (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            (folder / "results.txt").write_text(table(frame) + "\n", encoding="utf-8")
            plot(frame).savefig(folder / "memory.svg", metadata={"Date": None})
            print(table(frame), flush=True)


if __name__ == "__main__":
    main()
