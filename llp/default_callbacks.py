"""The callbacks that every model adds to its Trainer.

Apart from `LanguageModel`, which they name.
"""

from lightning.pytorch import Callback

from llp.evaluation.causality_check import CausalityCheck
from llp.evaluation.report import TestReport
from llp.training.metrics import RunMetrics
from llp.training.run_control import BatchSeed


def default_callbacks() -> list[Callback]:
    """Metrics, the seed of each batch, and a test report preceded by a check of causality."""
    return [RunMetrics(), BatchSeed(), CausalityCheck(), TestReport()]
