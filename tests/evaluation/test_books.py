"""Books never seen, scored by `llp test` and by brute force from the weights alone, in one pass over each."""

import json
import math
import random

import pytest
import torch
import yaml

from helpers import reference


@pytest.fixture
def books(work):
    """A folder in PG-19's layout, with books of several and of less than one scoring window."""
    rng, folder = random.Random(0), work / "books"
    lengths = {"train": {1: 400, 2: 300}, "validation": {3: 40}, "test": {10: 12, 9: 3, 11: 7}}
    for split, of_split in lengths.items():
        (folder / split).mkdir(parents=True)
        for number, n_words in of_split.items():
            words = ["".join(rng.choices("abc é", k=5)) + rng.choice(" \n") for _ in range(n_words)]
            (folder / split / f"{number}.txt").write_text("".join(words), encoding="utf-8", newline="")
    numbers = [number for of_split in lengths.values() for number in of_split]
    (folder / "metadata.csv").write_text("".join(f"{number},Book,1900,url\n" for number in numbers))
    config = yaml.safe_load((work / "tiny.yaml").read_text())
    config["data"] |= {"class_path": "datamodules.PG19"}
    config["data"]["init_args"]["path"] = str(folder)
    (work / "books.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_books_are_scored_as_by_brute_force(run, work, books):
    status, _, err = run("fit", "--config", "books.yaml", "--name", "run")
    assert status == 0, err
    folder = work / "lightning_logs/run"
    status, _, err = run("test", "--ckpt_path", folder, "--trainer.precision", "64-true")
    assert status == 0, err
    whole, *rows = json.loads((folder / "test.json").read_text())["rows"]
    saved = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    weights = {name.removeprefix("decoder."): weight.double() for name, weight in saved.items()}
    texts = [(books / f"test/{number}.txt").read_bytes() for number in (9, 10, 11)]
    expected = []
    for text in texts:  # a token is a byte, and a document begins with token 256
        logits = reference.logits(weights, [256, *text[:-1]], 2, 2, reference.llp_sees(8))
        expected.append(torch.nn.functional.cross_entropy(logits, torch.tensor([*text]), reduction="sum").item())
    assert [row["tokens"] for row in rows] == [*map(len, texts)]
    assert [row["nats"] for row in rows] == pytest.approx(expected, rel=1e-12)
    assert whole["nats"] == pytest.approx(math.fsum(expected), rel=1e-12)
