"""`llp context`: how far back a trained model really reads."""

from datamodules.base import LanguageDataModule
from datamodules.text import TextDataModule
from llp.atomic_files import run_folder
from llp.checkpoints import reading
from llp.commands.checkpoint_command import CheckpointCommand
from llp.commands.named_checkpoint import named_checkpoint, with_run_defaults
from llp.commands.parser import parser_for_part
from llp.commands.stored_tokenizer import with_stored_tokenizer
from llp.errors import require
from llp.evaluation.context import loss_by_context, write
from llp.evaluation.tables import aligned, readable


def run(options: list[str]) -> None:
    """Print the loss of the same tokens with growing context, and write it into the run's folder, drawn too."""
    description = "Score the same tokens with growing context: how far back a model really reads."
    parser = parser_for_part("context", description, {"data"})
    parser.add_lightning_class_args(LanguageDataModule, "data", subclass_mode=True)
    options = with_run_defaults("context", named_checkpoint("context", options))
    command = CheckpointCommand(parser, loss_by_context, {"model", "data"}, options)
    checkpoint = reading.read(command.ckpt_path)
    data = parser.instantiate(with_stored_tokenizer(command.arguments, checkpoint)).data
    remedy = "it has no text whose tokens could be scored; `llp test` says what is known from which distance"
    require(isinstance(data, TextDataModule), "data", type(data).__name__, remedy)
    data.prepare_data()
    data.setup("predict")
    reading.check_tokenizer(checkpoint, data)
    with command.autocast():
        curve = loss_by_context(command.loaded.module, data, **command.own)
    header = ["context", "loss", "standard error", "perplexity", "recall tokens", "other tokens"]
    cells = [
        [
            f"{point.context:,}",
            f"{point.loss:.4f}",
            f"± {point.standard_error:.4f}",
            readable(point.perplexity),
            f"{point.recall_loss:.4f}",
            f"{point.other_loss:.4f}",
        ]
        for point in curve.points
    ]
    print("\n".join(aligned([header, *cells], n_left=0)))
    longest = curve.points[-1]
    of_all = f"{longest.recall_targets:,} of {longest.targets:,} tokens"
    print(f"Recall tokens: with {longest.context:,} tokens of context, {of_all} repeat a bigram.")
    text = f"{longest.targets:,} tokens of {data.name}, {command.own['split']}"
    for path in write(curve, run_folder(command.ckpt_path), f"{type(command.loaded.module).__name__}: {text}"):
        print(f"Written to {path}")
