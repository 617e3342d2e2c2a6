"""How long a training step of each arm takes: all arms in turns, so that a busy moment is everybody's."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.fabric import Fabric
from tqdm import tqdm

from llp.checkpoints.reading import import_class
from llp.comparison.records import Timing

TakeStep = Callable[[], object]


def timed(make_steps: Mapping[str, Callable[[], TakeStep]], rounds: int, device: str) -> Timing:
    """Median seconds of a step by arm, over rounds in which each arm takes one step.

    Args:
        make_steps: By arm, what builds a model and returns the function that takes one training step of it.
        rounds: How many rounds; the first of all is left out.
        device: Its name, for the record.
    """
    steps = {arm: make() for arm, make in make_steps.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in steps}
    for step in steps.values():
        step()
    for _ in tqdm(range(rounds), desc="timing all arms in turns", disable=None, leave=False):
        for arm, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[arm].append(time.perf_counter() - started)
    how = {"device": device, "threads": torch.get_num_threads(), "rounds": rounds}
    return Timing({arm: statistics.median(values) for arm, values in seconds.items()}, how)


def training_step(
    class_path: str,
    arguments: dict[str, Any],
    batch_size: int,
    burn_in: int,
    window_len: int,
    n_batches: int,
    accelerator: str,
    precision: str,
) -> TakeStep:
    """Build a model; returns the function that takes one training step of it, on random tokens.

    Args:
        class_path: The model's class.
        arguments: Its arguments, `vocab_size` among them.
        batch_size: Windows in a batch.
        burn_in: Tokens before a window that are read without a loss.
        window_len: A window's length.
        n_batches: Batches whose gradients are accumulated in the step.
        accelerator: Lightning's name of what it runs on.
        precision: Lightning's name of the precision.
    """
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = import_class(class_path)(**arguments)
    model.configure_model()
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=1e-4)
    decoder, optimizer = fabric.setup(model.decoder.train(), optimizer)
    tokens = torch.randint(arguments["vocab_size"], (batch_size, burn_in + window_len + 1), device=fabric.device)

    def step() -> None:
        for _ in range(n_batches):
            fabric.backward(decoder.loss(tokens[:, :-1], tokens[:, burn_in + 1 :]).mean / n_batches)
        fabric.clip_gradients(decoder, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()

    return step
