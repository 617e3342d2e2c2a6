"""How long a training step of each arm takes: all arms in turns, so that a busy moment is everybody's."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from lightning.fabric import Fabric

from llp.comparison.records import Timing
from llp.training_module import TrainingModule


def timed(steps: Mapping[str, Callable[[], object]], rounds: int, device: str) -> Timing:
    """Median seconds of a step by arm, over rounds in which each arm takes one step; one before them doesn't count."""
    seconds: dict[str, list[float]] = {arm: [] for arm in steps}
    for _ in range(1 + rounds):
        for arm, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[arm].append(time.perf_counter() - started)
    how = {"device": device, "threads": torch.get_num_threads(), "rounds": rounds}
    return Timing({arm: statistics.median(values[1:]) for arm, values in seconds.items()}, how)


def training_step(
    model: TrainingModule, size: tuple[int, int], n_scored: int, n_batches: int, fabric: Fabric
) -> Callable[[], None]:
    """What takes one training step of a new model of the same settings, on random tokens.

    Args:
        model: The model of an arm; it isn't used otherwise.
        size: Windows in a batch, and tokens of each, the last target included.
        n_scored: How many of the last tokens have a loss.
        n_batches: Batches whose gradients are accumulated in the step.
        fabric: The device and the precision.
    """
    torch.manual_seed(0)
    model = type(model)(**model.hparams)
    model.configure_model()
    decoder, optimizer = fabric.setup(model.decoder.train(), torch.optim.AdamW(model.decoder.parameters(), lr=1e-4))
    tokens = torch.randint(model.hparams["vocab_size"], size, device=fabric.device)

    def step() -> None:
        for _ in range(n_batches):
            fabric.backward(decoder.loss(tokens[:, :-1], tokens[:, -n_scored:]).mean / n_batches)
        fabric.clip_gradients(decoder, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()

    return step
