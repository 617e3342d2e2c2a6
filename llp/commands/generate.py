"""`llp generate`: continue a text with a trained model."""

from llp.commands.trained import Trained
from llp.generation.continuation import continue_text


def run(options: list[str]) -> None:
    """Print a prompt and its continuation, as it is drawn."""
    description = "Continue a prompt with a trained model."
    trained = Trained("generate", description, continue_text, {"model", "data"}, options)
    print(trained.own["prompt"], end="", flush=True)
    with trained.autocast():
        for text in continue_text(trained.model, trained.data, **trained.own):
            print(text, end="", flush=True)
    print()
