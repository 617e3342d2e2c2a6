"""Which parameters have weight decay, and the learning rate as a pure function of the step."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from llp.errors import require


@dataclass(frozen=True)
class OptimizationSettings:
    """Settings of AdamW and of its schedule; `TrainingModule` documents each of them.

    Raises:
        SettingError: If a value can't be used.
    """

    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    schedule: Literal["cosine", "halving"]
    warmup_steps: int
    final_learning_rate: float
    halve_every: int

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(0 < rate < math.inf, "learning_rate", rate, "set it above 0, and to a finite number")
        require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "set both to 0 or more and less than 1")
        for name in ("warmup_steps", "weight_decay", "final_learning_rate"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "set it to 0 or more, and to a finite number")
        require(self.halve_every >= 1, "halve_every", self.halve_every, "set it to 1 or more")

    def factor(self, step: int, max_steps: int) -> float:
        """The learning rate of an optimizer step, as a fraction of `learning_rate`."""
        if self.schedule == "halving":
            return halving(step, self.warmup_steps, self.halve_every)
        return cosine(step, self.warmup_steps, max_steps, self.final_learning_rate)

    def adamw(self, module: nn.Module, fused: bool) -> AdamW:
        """The optimizer of a module's parameters."""
        groups = parameter_groups(module, self.weight_decay)
        beta1, beta2 = self.betas
        return AdamW(groups, lr=self.learning_rate, betas=(beta1, beta2), fused=fused)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups: the weights of linear layers, which decay, and the rest (embeddings, norms, biases)."""
    decaying = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in decaying], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decaying], "weight_decay": 0.0},
    ]


def warmup(step: int, warmup_steps: int) -> float:
    """Linear warm-up, from 1 / warmup_steps in step 0 to 1."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def warn_of_warmup(warmup_steps: int, max_steps: int) -> None:
    """Say so if a run's learning rate only rises."""
    if 0 < max_steps <= warmup_steps:
        rank_zero_warn(
            f"model.init_args.warmup_steps = {warmup_steps}: the warm-up takes all of the run's {max_steps} steps, "
            "so that the learning rate only rises; set it to a tenth of the run, say"
        )


def cosine(step: int, warmup_steps: int, max_steps: int, floor: float) -> float:
    """Linear warm-up, then a half cosine from 1 down to `floor` in step `max_steps`."""
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    fall = (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
    return warmup(step, warmup_steps) * (floor + (1 - floor) * fall)


def halving(step: int, warmup_steps: int, halve_every: int) -> float:
    """Linear warm-up, and a halving every `halve_every` steps (the published schedule)."""
    return warmup(step, warmup_steps) * 0.5 ** (step // halve_every)


def apply_settings(trainer: Trainer, settings: list[dict[str, Any]]) -> None:
    """Apply settings to the groups of a trainer's optimizer, with the learning rate of the current step.

    Loading a checkpoint restored those of the run that wrote it, including the learning rate and the weight decay.
    """
    (optimizer,), (config,) = trainer.optimizers, trainer.lr_scheduler_configs
    scheduler = config.scheduler
    assert isinstance(scheduler, LambdaLR)
    scheduler.base_lrs = [group["initial_lr"] for group in settings]
    for group, made, factor in zip(optimizer.param_groups, settings, scheduler.lr_lambdas, strict=True):
        group.update(made)
        group["lr"] = made["initial_lr"] * factor(scheduler.last_epoch)
