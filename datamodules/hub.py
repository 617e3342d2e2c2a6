"""Rows of data sets on the Hub."""

from collections.abc import Iterator
from typing import Any

from llp.errors import SettingError


def hub_rows(
    hub_id: str, configuration: str | None, split: str, revision: str, columns: list[str]
) -> Iterator[dict[str, Any]]:
    """Stream the rows of a data set, so that it never sits in memory or on disk whole.

    Args:
        hub_id: Name on the Hub, or a local folder in the same layout.
        configuration: Its configuration, if it has several.
        split: Name of the split.
        revision: Branch, tag or commit.
        columns: The columns to read.

    Raises:
        SettingError: If the Hub can't be reached or does not have it.
    """
    import datasets  # takes seconds, and only the Hub needs it

    try:
        rows = datasets.load_dataset(hub_id, configuration, split=split, revision=revision, streaming=True)
        yield from rows.select_columns(columns)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        of_configuration = "" if configuration is None else f" in configuration {configuration}"
        raise SettingError(
            "data.init_args.hub_id",
            hub_id,
            f"the Hub did not give its {split} split at revision {revision}{of_configuration} ({reason}); "
            "name a local copy with data.init_args.path, or run where there is a network",
        ) from error
