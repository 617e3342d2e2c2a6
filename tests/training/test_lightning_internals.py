"""Each private member of Lightning that is used is still there: one line fails for each that a new version moves."""

import inspect

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from llp import lightning_internals

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
