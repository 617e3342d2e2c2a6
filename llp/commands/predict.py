"""`llp predict`: write the loss of every token of the test split."""

from typing import Any

from llp.commands.trainer_command import TrainerCommand


def run(options: list[str]) -> None:
    """Write the loss of every token of the test split."""
    PredictCommand(options)


class PredictCommand(TrainerCommand):
    """`Trainer.predict`; `TokenLosses` writes the losses as they come."""

    name = "predict"
    hidden = {"return_predictions"}

    def predict(self, **kwargs: Any) -> None:
        self.trainer.predict(return_predictions=False, **kwargs)
