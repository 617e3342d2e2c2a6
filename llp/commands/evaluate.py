"""`llp evaluate`: a trained model on the tasks of EleutherAI's lm-evaluation-harness."""

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datamodules.base import LanguageDataModule
from datamodules.text import TextDataModule
from llp.atomic_files import run_folder
from llp.checkpoints import reading
from llp.commands.checkpoint_command import CheckpointCommand
from llp.commands.named_checkpoint import named_checkpoint, with_run_defaults
from llp.commands.parser import Parser, parser_for_part
from llp.commands.stored_tokenizer import with_stored_tokenizer
from llp.errors import require
from llp.evaluation.report import model_protocol
from llp.evaluation.tables import write_json


def run(options: list[str]) -> None:
    """Carry out tasks, print their figures and write them into the run's folder."""
    remedy = 'it needs the harness: pip install "long-lora-perceiver[evaluate]"'
    require(find_spec("lm_eval") is not None, "llp evaluate", "lm_eval", remedy)
    from llp.harness.evaluation import evaluate_tasks, format_results, harness_protocol  # an extra; takes seconds

    description = "Carry out tasks of EleutherAI's lm-evaluation-harness."
    parser = parser_for_part("evaluate", description, {"data"})
    parser.add_lightning_class_args(LanguageDataModule, "data", subclass_mode=True)
    options = with_run_defaults("evaluate", named_checkpoint("evaluate", options))
    command = CheckpointCommand(parser, evaluate_tasks, {"model", "write_documents"}, options)
    with tempfile.TemporaryDirectory() as folder, command.autocast():
        documents = DocumentFile(parser, command, Path(folder))
        rows = evaluate_tasks(command.loaded.as_text_model(), write_documents=documents.write, **command.own)
    protocol = {
        **model_protocol(command.loaded.module, command.ckpt_path, command.arguments.precision),
        **harness_protocol(command.loaded.as_text_model(), command.own["batch_size"], command.own["limit"]),
        "text": documents.text,
    }
    print(format_results(rows, protocol))
    path = write_json(run_folder(command.ckpt_path) / "evaluate.json", {"protocol": protocol, "tasks": rows})
    print(f"Written to {path}")


class DocumentFile:
    """A file of the documents of the test split of the run's data, or of what the command line names as `--data`.

    Args:
        parser: The subcommand's.
        command: The command line, with the trained model.
        folder: Where the file goes.
    """

    def __init__(self, parser: Parser, command: CheckpointCommand, folder: Path) -> None:
        self.parser, self.command, self.folder = parser, command, folder
        self.text: dict[str, Any] | None = None
        """Which text the documents are of; None: no task has asked for them."""

    def write(self) -> Path:
        """Write a .jsonl file of objects with the "text" of a document each; returns its path.

        Raises:
            SettingError: If the data are no text.
        """
        checkpoint = reading.read(self.command.ckpt_path)
        data = self.parser.instantiate(with_stored_tokenizer(self.command.arguments, checkpoint)).data
        remedy = "it has no documents that these tasks could be made from; name a text with --data"
        require(isinstance(data, TextDataModule), "data", type(data).__name__, remedy)
        data.prepare_data()
        data.setup("test")
        file = data.checked_file("test")
        self.text = {"data": data.name, "split": "test", "data_fingerprint": data.about["data_fingerprint"]}
        path = self.folder / "documents.jsonl"
        with path.open("w", encoding="utf-8") as lines:
            for document in file.documents:
                text = data.tokenizer.decode(file.text_of(document).tolist())
                print(json.dumps({"text": text}), file=lines)
        return path
