"""How long a training step of each arm takes: all arms in turns, so that a busy moment is everybody's."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from lightning.fabric import Fabric
from tqdm import tqdm

from llp.comparison.records import Timing
from llp.training_module import TrainingModule


def timed(steps: Mapping[str, Callable[[], object]], rounds: int, device: str) -> Timing:
    """Median seconds of a step by arm, over rounds in which each arm takes one step.

    Args:
        steps: By arm, what takes one training step of it.
        rounds: How many rounds, after one that doesn't count.
        device: Its name, for the record.
    """
    seconds: dict[str, list[float]] = {arm: [] for arm in steps}
    for _ in tqdm(range(1 + rounds), desc="timing all arms in turns", disable=None, leave=False):
        for arm, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[arm].append(time.perf_counter() - started)
    how = {"device": device, "threads": torch.get_num_threads(), "rounds": rounds}
    return Timing({arm: statistics.median(values[1:]) for arm, values in seconds.items()}, how)


def training_step(
    model: TrainingModule,
    batch_size: int,
    burn_in: int,
    window_len: int,
    n_batches: int,
    accelerator: str,
    precision: str,
) -> Callable[[], None]:
    """What takes one training step of a new model, on random tokens.

    Args:
        model: A model of the same settings; it isn't used otherwise.
        batch_size: Windows in a batch.
        burn_in: Tokens before a window that are read without a loss.
        window_len: A window's length.
        n_batches: Batches whose gradients are accumulated in the step.
        accelerator: Lightning's name of what it runs on.
        precision: Lightning's name of the precision.
    """
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = type(model)(**model.hparams)
    model.configure_model()
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=1e-4)
    decoder, optimizer = fabric.setup(model.decoder.train(), optimizer)
    size = batch_size, burn_in + window_len + 1
    tokens = torch.randint(model.hparams["vocab_size"], size, device=fabric.device)

    def step() -> None:
        for _ in range(n_batches):
            fabric.backward(decoder.loss(tokens[:, :-1], tokens[:, burn_in + 1 :]).mean / n_batches)
        fabric.clip_gradients(decoder, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()

    return step
