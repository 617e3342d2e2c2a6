"""`llp context`: how far back a trained model really reads."""

from typing import Any

from datamodules.base import LanguageDataModule
from datamodules.text import TextDataModule
from llp.atomic_files import run_folder
from llp.checkpoints import reading
from llp.commands.trained_model import TrainedModel
from llp.errors import SettingError
from llp.evaluation.context import loss_by_context, write
from llp.evaluation.tables import aligned, readable


def context(trained: TrainedModel, data: LanguageDataModule, **settings: Any) -> None:
    """Print the loss of the same tokens with more and more context; write it to the run's folder as a table and a plot.

    Args:
        trained: The model.
        data: The data of its run, or another text.
        settings: Arguments of `loss_by_context`.
    """
    if not isinstance(data, TextDataModule):
        remedy = "it has no text whose tokens could be scored; `llp test` shows the accuracy by distance"
        raise SettingError("data", type(data).__name__, remedy)
    data.prepare_data()
    data.setup("predict")
    reading.check_tokenizer(reading.read(trained.ckpt_path), data)
    with trained.autocast():
        curve = loss_by_context(trained.loaded.module, data, **settings)
    header = ["context", "loss", "standard error", "perplexity"]
    cells = [
        [f"{point.context:,}", f"{point.loss:.4f}", f"± {point.standard_error:.4f}", readable(point.perplexity)]
        for point in curve
    ]
    print("\n".join(aligned([header, *cells], n_left=0)))
    text = f"{curve[-1].targets:,} tokens of {data.name}, {settings['split']}"
    for path in write(curve, run_folder(trained.ckpt_path), f"{type(trained.loaded.module).__name__}: {text}"):
        print(f"Written to {path}")
