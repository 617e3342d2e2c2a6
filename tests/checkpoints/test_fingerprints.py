"""What a run started from and has read, as digests: by hand, and told apart where runs differ."""

import hashlib
import json
from functools import reduce

import torch

from datamodules.loaders import TrainingProgress
from llp.checkpoints.fingerprints import weights_digest


def chained_digest(before, batch):
    return hashlib.sha256(before.encode() + b"".join(tensor.numpy().tobytes() for tensor in batch)).hexdigest()


def test_digests_by_hand():
    one, two = torch.tensor([[1, 2]]), torch.tensor([[2, 3]])
    first = hashlib.sha256(one.numpy().tobytes() + two.numpy().tobytes()).hexdigest()
    progress = TrainingProgress()
    progress.add((one, two))
    assert progress.fingerprints == {"training_windows": first, "first_1_batches": first}
    progress.add((two.repeat(1, 2)[:, ::2],))  # of any layout in memory
    second = hashlib.sha256(first.encode() + two.repeat(1, 2)[:, ::2].numpy().tobytes()).hexdigest()
    assert progress.fingerprints["training_windows"] == second
    weights = {"b": torch.ones(2), "a": torch.zeros(1), "skipped.c": torch.ones(1)}
    expected = hashlib.sha256(b"a" + bytes(4) + b"b" + torch.ones(2).numpy().tobytes()).hexdigest()
    assert weights_digest(weights.items(), skip=["skipped."]) == expected
    assert weights_digest([("b", torch.ones(2)), ("a", torch.ones(1))]) != expected


def test_the_first_batches_have_digests_of_their_own():
    """At each power of two, whatever comes after them."""
    batches = [(torch.tensor([number]),) for number in range(7)]
    progress = TrainingProgress()
    for batch in batches:
        progress.add(batch)
    fingerprints = progress.fingerprints
    assert fingerprints.keys() == {"training_windows", "first_1_batches", "first_2_batches", "first_4_batches"}
    for n, name in ((1, "first_1_batches"), (4, "first_4_batches"), (7, "training_windows")):
        assert fingerprints[name] == reduce(chained_digest, batches[:n], "")


def test_runs_of_one_seed_share_windows_and_weights_and_others_do_not(run, trained):
    """Weights but for V3's map."""
    own = "{latent_len: 16, history_len: 16, compressed_len: 8}"
    compressed = ("--config", f"{{model: {{class_path: llp.CompressedAttention, init_args: {own}}}}}")
    for name, flags in (("compressed", compressed), ("seed", ("--seed_everything", 1))):
        status, _, err = run("fit", "--config", "tiny.yaml", *flags, "--name", name)
        assert status == 0, err
    llp, compressed, seed = (
        json.loads((trained.parent / name / "run.json").read_text())["fingerprints"]
        for name in ("run", "compressed", "seed")
    )
    assert compressed == llp
    assert llp.keys() == seed.keys() >= {"initial_weights", "training_windows", "first_4_batches"}
    assert not {*seed.values()} & {*llp.values()}
