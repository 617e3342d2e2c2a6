"""Tables of text, and metrics as JSON and CSV files."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_utilities.core.apply_func import apply_to_collection

from llp.atomic_files import json_with_digest, write_whole


def aligned(table: Sequence[Sequence[str]], n_left: int) -> list[str]:
    """The rows of a table as lines of text; the first `n_left` columns are aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < n_left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def with_rule(table: Sequence[Sequence[str]], n_left: int) -> list[str]:
    """`aligned`, with a rule below the head, the first row."""
    head, *lines = aligned(table, n_left)
    return [head, "-" * max(map(len, [head, *lines])), *lines]


def readable(value: float) -> str:
    """An integer as `1,234`; another number as `1,234.5678`, or as `1.8e33` from a billion on."""
    if isinstance(value, int):
        return f"{value:,}"
    if 1e9 <= value < math.inf:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.4f}"


def write_json(path: Path, content: Mapping[str, object]) -> Path:
    """Write a report; an older file is kept under a numbered name. Numbers that are not finite become `null`."""
    finite = apply_to_collection(content, float, lambda value: value if math.isfinite(value) else None)
    write_whole(path, json_with_digest(finite), keeps_older=True)
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows as CSV with a header; an older file is kept under a numbered name."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue(), keeps_older=True)
    return path
