"""The callbacks that every model brings along, whichever Trainer uses it."""

from lightning.pytorch import Callback

from llp.evaluation.causality_check import CausalityCheck
from llp.evaluation.report import TestReport
from llp.training.batch_seed import BatchSeed
from llp.training.metrics import RunMetrics


def default_callbacks() -> list[Callback]:
    """Metrics, dropout that a resumed run draws identically, and a test report behind a check of causality."""
    return [RunMetrics(), BatchSeed(), CausalityCheck(), TestReport()]
