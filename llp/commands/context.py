"""`llp context`: how far back a trained model really reads."""

from llp.commands.trained import Trained
from llp.evaluation.context import loss_by_context, write
from llp.evaluation.tables import aligned
from llp.run_folder import run_folder


def run(options: list[str]) -> None:
    """Print the loss of the same tokens with growing context, and write it into the run's folder, drawn too."""
    description = "Score the same tokens with growing context: how far back a model really reads."
    trained = Trained("context", description, loss_by_context, {"model", "data"}, options)
    with trained.autocast():
        curve = loss_by_context(trained.model, trained.data, **trained.own)
    cells = [[f"{point.context:,}", f"{point.loss:.4f}", f"{point.perplexity:,.4f}"] for point in curve]
    print("\n".join(aligned([["context", "loss", "perplexity"], *cells], n_left=0)))
    text = f"{curve[0].targets:,} tokens of {trained.data.name}, {trained.own['split']}"
    for path in write(curve, run_folder(trained.ckpt_path), f"{type(trained.model).__name__}: {text}"):
        print(f"Written to {path}")
