"""A run's hyperparameters beside what came of them."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger


class FinalHyperparameters(Callback):
    """Writes the hyperparameters with the last validation's figures to TensorBoard's HPARAMS page."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        final = {
            f"final/{name.removeprefix('val/')}": value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        trainer.logger.log_hyperparams(trainer.logger.hparams, final, step=trainer.global_step)
