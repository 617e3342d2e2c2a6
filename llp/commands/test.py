"""`llp test`: score the test split, and write the report into the run's folder."""

from typing import Any

from llp.commands.trainer_command import TrainerCommand


def run(options: list[str]) -> None:
    """Score the test split."""
    TestCommand(options)


class TestCommand(TrainerCommand):
    """`Trainer.test`; the report's table stands for Lightning's."""

    __test__ = False  # no test case, whatever its name
    name = "test"
    hidden = {"verbose"}

    def test(self, **kwargs: Any) -> None:
        self.trainer.test(verbose=False, **kwargs)
