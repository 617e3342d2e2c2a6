"""How documents are shared out among the splits: whole ones, or parts of each. Arithmetic alone, no text."""

import math
from dataclasses import dataclass

from llp.errors import require


@dataclass(frozen=True)
class Shares:
    """The shares of validation and test; training has the rest.

    Raises:
        SettingError: If a share can't be used.
    """

    validation: float
    test: float

    def __post_init__(self) -> None:
        for setting, share in (("validation_share", self.validation), ("test_share", self.test)):
            require(0 < share <= 0.5, f"data.init_args.{setting}", share, "set it above 0 and to 0.5 at most")
        remedy = f"with test_share = {self.test} nothing is left for training; lower one of them"
        require(self.validation + self.test < 1, "data.init_args.validation_share", self.validation, remedy)

    def split_of(self, number: int) -> str:
        """The split of a whole document, by its number.

        They are spread evenly: a document is held out where its number times the share passes a whole one.
        """
        held_out_share = self.validation + self.test
        if not _passes_whole(number, held_out_share):
            return "train"
        held_out = math.floor(round(number * held_out_share, 9))
        return "test" if _passes_whole(held_out, self.test / held_out_share) else "validation"

    def part(self, split: str, size: int) -> tuple[int, int]:
        """Where a split's part of a document of `size` bytes begins and ends: train, validation and test in order."""
        train, validation = round(size * (1 - self.validation - self.test)), round(size * (1 - self.test))
        return {"train": (0, train), "validation": (train, validation), "test": (validation, size)}[split]


def _passes_whole(number: int, share: float) -> bool:
    """Whether a whole number lies in (number * share, (number + 1) * share]; rounded: 0.1 * 10 is to be 1."""
    return math.floor(round((number + 1) * share, 9)) > math.floor(round(number * share, 9))
