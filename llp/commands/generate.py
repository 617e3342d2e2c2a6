"""`llp generate`: continue a text with a trained model, which needs nothing but its checkpoint."""

from llp.commands.checkpoint_command import CheckpointCommand
from llp.commands.named_checkpoint import named_checkpoint
from llp.commands.parser import Parser
from llp.errors import require
from llp.generation.continuation import continue_text


def run(options: list[str]) -> None:
    """Print a prompt and its continuation, as it is drawn."""
    parser = Parser(prog="llp generate", description="Continue a prompt with a trained model.")
    parser.add_argument("--name", type=str | None, help="The run in lightning_logs/.")
    command = CheckpointCommand(parser, continue_text, {"model"}, named_checkpoint("generate", options))
    prompt = command.own["prompt"]
    require(_is_text(prompt), "prompt", repr(prompt), "it is not UTF-8; give it in that encoding")
    print(prompt, end="", flush=True)
    with command.autocast():
        for text in continue_text(command.model, **command.own):
            print(text, end="", flush=True)
    print()


def _is_text(prompt: str) -> bool:
    """Whether all of a command line's bytes were characters: Python keeps those that are none as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in prompt)
