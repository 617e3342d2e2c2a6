"""A trained model with its data, for the subcommands that train nothing and need no Trainer."""

from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace
from lightning.fabric import Fabric

from datamodules.text import TextDataModule
from llp.commands.named_checkpoint import named_checkpoint, run_defaults
from llp.commands.parser import parser_for_part
from llp.errors import require
from llp.language_model import LanguageModel
from llp.training import checkpoints


class Trained:
    """What a command line names: a model with a checkpoint's weights, its prepared data, and the device's precision.

    Args:
        subcommand: Its name.
        description: What it does.
        own: The function whose arguments are the subcommand's own options.
        skip: Those of its arguments that are none.
        options: The words behind the subcommand.

    Raises:
        SettingError: If the checkpoint can't be used, or is not that of this model.
    """

    def __init__(
        self, subcommand: str, description: str, own: Callable[..., Any], skip: set[str | int], options: list[str]
    ) -> None:
        arguments, names = _parse(subcommand, description, own, skip, options)
        self.own = {name: arguments[name] for name in names}
        self.ckpt_path = arguments.ckpt_path
        require(self.ckpt_path is not None, "ckpt_path", None, "name the checkpoint of a trained model")
        checkpoint = checkpoints.read(self.ckpt_path)
        self.model: Any = arguments.model
        self.data: Any = arguments.data
        checkpoints.check_fits(checkpoint, self.model)
        checkpoints.require_one_file(self.ckpt_path)
        self.data.prepare_data()
        self.data.setup("predict")
        checkpoints.check_tokenizer(checkpoint, self.data)
        trainer = arguments.trainer
        fabric = Fabric(accelerator=trainer.get("accelerator", "auto"), devices=1, precision=trainer.get("precision"))
        self.model.configure_model()
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.eval().to(fabric.device)
        self.autocast = fabric.autocast


def _parse(
    subcommand: str, description: str, own: Callable[..., Any], skip: set[str | int], options: list[str]
) -> tuple[Namespace, list[str]]:
    """The arguments, with model and data built, and the names of the subcommand's own."""
    options = options if {"-h", "--help"} & set(options) else named_checkpoint(subcommand, options)
    defaults = None if {"-h", "--help"} & set(options) else run_defaults(subcommand, options)
    files = [] if defaults is None else [str(defaults)]
    parser = parser_for_part(subcommand, description, {"model", "data"}, default_config_files=files)
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="The model's checkpoint.")
    names = parser.add_function_arguments(own, skip=skip)
    parser.add_lightning_class_args(LanguageModel, "model", subclass_mode=True)
    parser.add_lightning_class_args(TextDataModule, "data", subclass_mode=True)
    parser.link_arguments("data.vocab_size", "model.init_args.vocab_size", apply_on="instantiate")
    return parser.instantiate_classes(parser.parse_args(options)), names
