"""`llp validate`: score the validation split, and write the report into the run's folder."""

from typing import Any

from llp.commands.trainer_command import TrainerCommand


def run(options: list[str]) -> None:
    """Score the validation split."""
    ValidateCommand(options)


class ValidateCommand(TrainerCommand):
    """`Trainer.validate`; the report's table stands for Lightning's."""

    name = "validate"
    hidden = {"verbose"}

    def validate(self, **kwargs: Any) -> None:
        self.trainer.validate(verbose=False, **kwargs)
