"""Peak memory of one optimizer step on the mean loss of a whole text, by the length of the text; see README.md.

python benchmarks/long_text.py
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch.optim import Optimizer

import llp
from datamodules import Bytes, PythonSource, TextFiles
from llp.training.guards import gradient_norm
from llp.training_module import TrainingModule
from measuring import Row, in_own_process, memory
from tables import Panel, save

SIZES = {"dim": 128, "n_layers": 4, "n_heads": 2, "schedule": "halving"}
PIECE_LEN = 8192


class Arm(NamedTuple):
    """How a text is trained on."""

    architecture: str
    piece_len: int | None
    """Tokens of a piece, or None for the whole text at once."""
    lengths: tuple[int, ...]
    """Of the texts; where memory grows with them, as far as it goes."""


ARMS = {
    "LLP in pieces": Arm("LLP", PIECE_LEN, (2**16, 2**18, 2**20)),
    "LLP in one pass": Arm("LLP", None, (2**14, 2**16, 2**17)),
    "dense": Arm("Transformer", None, (2**13, 2**14, 2**15)),
}
TITLE = "One optimizer step on the mean loss of one text"
PLOTS = {"memory.svg": [Panel("memory", "peak_mib", "peak memory of the process (MiB)", TITLE)]}


class StepMetrics(Callback):
    """The loss of the step, and the norm of its gradient."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: TrainingModule, optimizer: Optimizer) -> None:
        self.loss, self.grad_norm = pl_module.step_loss.item(), gradient_norm(pl_module).item()


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


def measure(arm: Arm, n_tokens: int) -> Row:
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
        row = {"before_mib": memory(peak=True) / 2**20}
        started = time.process_time()
        trainer.fit(model, data)
        row |= {"peak_mib": memory(peak=True) / 2**20, "cpu_seconds": time.process_time() - started}
        return row | {"loss": metrics.loss, "grad_norm": metrics.grad_norm}


def main() -> None:
    """Measure each arm at each length in a process of its own, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/long_text")
    folder: Path = parser.parse_args().out
    # The C library of the processes returns freed memory at once, so that their peak is what is needed.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
    for name, arm in ARMS.items():
        for n in arm.lengths:
            save(folder, [{"part": "memory", "arm": name, "n": n, **in_own_process(measure, arm, n)}], PLOTS)


if __name__ == "__main__":
    main()
