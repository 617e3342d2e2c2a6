"""The members of other libraries that are not public: each test fails in one line when a version moves one."""

from typing import Union

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import ModelParallelStrategy

from llp.commands.private_members import keep_integers, share_data_over_all


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
