"""`llp evaluate`: a trained model on the tasks of EleutherAI's lm-evaluation-harness."""

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datamodules.base import LanguageDataModule
from datamodules.text import TextDataModule
from llp.atomic_files import run_folder
from llp.commands.trained_model import TrainedModel
from llp.errors import SettingError, require
from llp.evaluation.report import model_protocol
from llp.evaluation.tables import write_json

_REMEDY = 'it needs the harness: pip install "long-lora-perceiver[evaluate]"'
require(find_spec("lm_eval") is not None, "llp evaluate", "lm_eval", _REMEDY)
from llp.harness.evaluation import evaluate_tasks, format_results, harness_protocol  # noqa: E402


def evaluate(trained: TrainedModel, data: LanguageDataModule, **settings: Any) -> None:
    """Run tasks, print their metrics and write them into the run's folder.

    Args:
        trained: The model.
        data: The data of its run, or another text, for the tasks that are made from its test split.
        settings: Those of `evaluate_tasks`.
    """
    model = trained.loaded.as_text_model()
    with tempfile.TemporaryDirectory() as folder, trained.autocast():
        documents = DocumentFile(data, Path(folder, "documents.jsonl"))
        rows = evaluate_tasks(model, write_documents=documents.write, **settings)
    protocol = {
        **model_protocol(model.module, trained.ckpt_path, trained.precision),
        **harness_protocol(model, settings["batch_size"], settings["limit"]),
        "text": documents.text,
    }
    print(format_results(rows, protocol))
    path = write_json(run_folder(trained.ckpt_path) / "evaluate.json", {"protocol": protocol, "tasks": rows})
    print(f"Written to {path}")


class DocumentFile:
    """A file of the documents of the test split.

    Attributes:
        text: Which text the documents are of, once a task has asked for them.
    """

    def __init__(self, data: LanguageDataModule, path: Path) -> None:
        self.data, self.path = data, path
        self.text: dict[str, Any] | None = None

    def write(self) -> Path:
        """Write a .jsonl file with the "text" of a document in each line; returns its path.

        Raises:
            SettingError: If the data are no text.
        """
        data = self.data
        if not isinstance(data, TextDataModule):
            remedy = "it has no documents that these tasks could be made from; name a text with --data"
            raise SettingError("data", type(data).__name__, remedy)
        data.prepare_data()
        data.setup("test")
        file = data.checked_file("test")
        self.text = {"data": data.name, "split": "test", "data_fingerprint": data.about["data_fingerprint"]}
        with self.path.open("w", encoding="utf-8") as lines:
            for document in file.documents:
                text = data.tokenizer.decode(file.text_of(document).tolist())
                print(json.dumps({"text": text}), file=lines)
        return self.path
