"""Loaders of one's own: training, validation, test, prediction and checkpoints, from any form of batch."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, TensorDataset

import llp
from llp.errors import SettingError
from llp.training_module import inputs_and_targets

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
TOKENS = torch.randint(19, (20, 13), generator=torch.Generator().manual_seed(0))


class Rows(Dataset):
    """Rows of token ids, one a time."""

    def __len__(self):
        return len(TOKENS)

    def __getitem__(self, number):
        return TOKENS[number]


FORMS = {
    "token ids": Rows(),
    "a list of one tensor": TensorDataset(TOKENS.int()),
    "inputs and targets": TensorDataset(TOKENS[:, :-1], TOKENS[:, 1:]),
    "a list of rows": [*TOKENS],
}


def small(**settings):
    torch.manual_seed(0)
    return llp.LLP(19, dim=16, n_layers=2, n_heads=2, segment_len=4, warmup_steps=2, **settings)


@pytest.mark.parametrize("form", FORMS)
def test_a_loader_trains_validates_tests_and_predicts(form, tmp_path):
    loader, model = DataLoader(FORMS[form], batch_size=4), small()
    trainer = Trainer(max_epochs=3, default_root_dir=tmp_path, **QUIET)
    trainer.fit(model, loader, loader)
    assert trainer.global_step == 15
    model.eval()
    with torch.no_grad():
        each = F.cross_entropy(model(TOKENS[:, :-1]).mT, TOKENS[:, 1:], reduction="none")
    expected = {"loss": float(each.mean()), "perplexity": math.exp(each.mean())}
    for split, metrics in (("val", trainer.callback_metrics), ("test", trainer.test(model, loader, verbose=False)[0])):
        assert {name: float(metrics[f"{split}/{name}"]) for name in expected} == pytest.approx(expected, rel=1e-5)
    assert trainer.validate(model, loader, verbose=False)[0]["val/loss"] == pytest.approx(expected["loss"], rel=1e-5)
    torch.testing.assert_close(torch.cat(trainer.predict(model, loader)), each)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    loaded = llp.load(tmp_path / "own.ckpt")
    assert torch.equal(loaded.module(TOKENS), model(TOKENS))
    with pytest.raises(SettingError, match="has no tokenizer"):
        loaded.tokens("text")


def test_the_cosine_ends_with_the_last_epoch(tmp_path):
    model, loader = small(final_learning_rate=0.0), DataLoader(Rows(), batch_size=5)
    trainer = Trainer(max_epochs=2, accumulate_grad_batches=2, default_root_dir=tmp_path, **QUIET)
    trainer.fit(model, loader)
    assert trainer.global_step == model.n_steps == 4  # four batches an epoch, two of them a step
    assert model.learning_rate_factor(4) == pytest.approx(0)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)
    with pytest.raises(
        SettingError, match=r"trainer\.max_steps = -1: the cosine needs its length.*set it to the number"
    ):
        Trainer(max_epochs=-1, default_root_dir=tmp_path, **QUIET).fit(small(), loader)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3), r"batch = torch.float32 \(2, 3\): give token ids"),
        ({"input_ids": TOKENS}, "batch = dict: give token ids"),
        (TOKENS[:, :1], r"batch = \(20, 1\): give two tokens or more"),
    ],
)
def test_a_batch_of_another_form_is_refused(batch, message):
    with pytest.raises(SettingError, match=message):
        inputs_and_targets(batch)


@pytest.mark.parametrize(
    ("dataset", "wrong"), [([*(TOKENS + 5)], 23), (TensorDataset(TOKENS, TOKENS.where(TOKENS > 3, -100)), -100)]
)
def test_an_id_that_is_no_token_is_refused(tmp_path, dataset, wrong):
    loader, trainer = DataLoader(dataset, batch_size=4), Trainer(max_steps=1, default_root_dir=tmp_path, **QUIET)
    for call in (trainer.fit, trainer.validate, trainer.predict):
        with pytest.raises(SettingError, match=rf"batch = token {wrong}: the model has the tokens 0 \.\. 18"):
            call(small(), loader)
