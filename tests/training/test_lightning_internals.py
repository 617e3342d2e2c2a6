"""Each private member that is used is still there: one line fails for each that a new version moves."""

import inspect
from typing import Union

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import ModelParallelStrategy

from llp import lightning_internals
from llp.lightning_internals import keep_integers, share_data_over_all

TRAINER = Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *((ModelCheckpoint(), name) for name in lightning_internals.MODEL_CHECKPOINT),
        (_FitLoop, "_should_accumulate"),
        (TRAINER.fit_loop, "_data_fetcher"),
        (_TrainingEpochLoop, "_should_check_val_fx"),
        *((TRAINER, name) for name in inspect.get_annotations(lightning_internals._Untyped)),
    ],
)
def test_lightning_still_has(owner, name):
    assert hasattr(owner, name), f"{owner} has no {name}"


def test_where_a_member_is_set_or_called_its_meaning_is_the_same():
    source = inspect.getsource(_TrainingEpochLoop._should_check_val_fx)
    assert "self.trainer._val_check_time_interval" in source
    assert [*inspect.signature(ModelCheckpoint._save_checkpoint).parameters] == ["self", "trainer", "filepath"]
    assert [*inspect.signature(ModelCheckpoint._save_last_checkpoint).parameters][1:] == [
        "trainer",
        "monitor_candidates",
    ]


def test_one_batch_is_not_all_of_them_in_whichever_order_a_type_names_its_parts():
    parser = LightningArgumentParser()
    parser.add_argument("--limit", type=Union[float, int, None])  # noqa: UP007
    assert type(parser.parse_args(["--limit", "1"]).limit) is float, "jsonargparse no longer needs `keep_integers`"
    keep_integers(parser)
    for text, value in (("1", 1), ("0", 0), ("1.0", 1.0), ("0.5", 0.5), ("null", None)):
        parsed = parser.parse_args(["--limit", text]).limit
        assert (parsed, type(parsed)) == (value, type(value)), "jsonargparse keeps types elsewhere than in `_typehint`"


def test_all_processes_share_the_data_unless_the_configuration_says_otherwise():
    strategy, own = ModelParallelStrategy(), ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=2)
    assert strategy._data_parallel_size == "auto", "Lightning keeps the size elsewhere than in `_data_parallel_size`"
    share_data_over_all(strategy, 4)
    share_data_over_all(own, 4)
    sizes = [(one._data_parallel_size, one._tensor_parallel_size) for one in (strategy, own)]
    assert sizes == [(4, 1), (2, 2)]
