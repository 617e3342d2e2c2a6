"""The callbacks that every model adds to its Trainer.

Apart from `TrainingModule`, which they name.
"""

from lightning.pytorch import Callback

from llp.evaluation.causality_check import CausalityCheck
from llp.evaluation.report import TestReport
from llp.training.metrics import RunMetrics
from llp.training.run_control import BatchSeed
from llp.training.whole_steps import WholeSteps


def default_callbacks() -> list[Callback]:
    """Metrics, whole optimizer steps, the seed of each batch, and a test report preceded by a check of causality."""
    return [WholeSteps(), RunMetrics(), BatchSeed(), CausalityCheck(), TestReport()]
