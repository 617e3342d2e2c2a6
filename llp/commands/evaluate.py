"""`llp evaluate`: a trained model on the tasks of EleutherAI's lm-evaluation-harness."""

from importlib.util import find_spec
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
from llp.harness.evaluation import OWN_TASK, evaluate_tasks, format_results, harness_protocol  # noqa: E402


def evaluate(trained: TrainedModel, data: LanguageDataModule, **settings: Any) -> None:
    """Run tasks of the evaluation harness, print their metrics and write them to the run's folder.

    Args:
        trained: The model.
        data: The data of its run, or another text; `rolling_perplexity` scores its test split.
        settings: Arguments of `evaluate_tasks`.
    """
    model = trained.loaded.as_text_model()
    with trained.autocast():
        results = evaluate_tasks(model, documents=lambda: test_documents(data), **settings)
    protocol = {
        **model_protocol(model.module, trained.ckpt_path, trained.precision),
        **harness_protocol(model, settings["batch_size"], settings["limit"]),
    }
    if OWN_TASK in results["results"]:
        assert isinstance(data, TextDataModule)
        protocol["text"] = {"data": data.name, "split": "test", "data_fingerprint": data.about["data_fingerprint"]}
    print(format_results(results, protocol))
    path = write_json(run_folder(trained.ckpt_path) / "evaluate.json", {"protocol": protocol, **results})
    print(f"Written to {path}")


def test_documents(data: LanguageDataModule) -> list[str]:
    """The documents of the test split.

    Raises:
        SettingError: If the data is not a text.
    """
    if not isinstance(data, TextDataModule):
        remedy = "it has no documents that this task could score; name a text with --data"
        raise SettingError("data", type(data).__name__, remedy)
    data.prepare_data()
    data.setup("test")
    file = data.checked_file("test")
    return [data.tokenizer.decode(file.text_of(document).tolist()) for document in file.documents]
