"""Figures as tables of text, and as JSON and CSV files."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection

from llp.atomic_files import json_with_digest, whole_file

Report = tuple[dict[str, Any], Sequence[dict[str, Any]], str]
"""What is kept of a score beside its protocol, as JSON and as the rows of a CSV file; and its table as text."""

CERTIFICATE = {
    True: "Certified: no logit of this model depends on a later token, and every one probed depends on earlier tokens.",
    None: "NOT certified: the model was not probed for reading the tokens that it predicts.",
}
_MOST_DOCUMENTS = 10
_COLUMNS = ("tokens", "words", "bytes", "loss", "perplexity", "word_perplexity", "bits_per_byte")


def format_table(rows: Sequence[dict[str, Any]], protocol: dict[str, Any]) -> str:
    """Format the rows as a table of text: for each the model's figures, and below them the unigram model's.

    Args:
        rows: One for the whole split, or the part of it that was scored, then one per document. The first ten documents
            of which anything was scored are shown.
        protocol: How they were scored.
    """
    table: list[list[str]] = [["split", "document", "model", *_COLUMNS]]
    name = protocol["architecture"].rpartition(".")[2]
    whole, *documents = rows
    documents = [document for document in documents if document["tokens"]]
    for row in [whole, *documents[:_MOST_DOCUMENTS]]:
        where = [row["split"], row["document"] or ("(all)" if protocol["complete"] else "(part)")]
        table.append([*where, name, *(readable(row[column]) for column in _COLUMNS)])
        if "unigram_loss" in row:
            table.append(["", "", "unigram", "", "", "", *(readable(row[f"unigram_{name}"]) for name in _COLUMNS[3:])])
    lines = aligned(table, n_left=3)
    lines.insert(1, "-" * max(map(len, lines)))
    if len(documents) > _MOST_DOCUMENTS:
        lines.append(f"… and {len(documents) - _MOST_DOCUMENTS:,} more in {whole['split']}.csv")
    windows = f"Windows of {protocol['window_len']:,} tokens, stride {protocol['stride']:,}"
    if "context_mean" in protocol:
        least = protocol["context_least"]  # None: every document is one window
        later = "" if least is None else f"at least {least:,} tokens after a document's first window, from "
        mean, greatest = protocol["context_mean"], protocol["context_greatest"]
        windows += f": a token is predicted from {later}{mean:,.1f} tokens on average, and from at most {greatest:,}"
    lines += [f"{windows}.", f"Words: {protocol['word_count']}."]
    if rows[0]["plain_words"] != rows[0]["words"]:
        lines.append(
            f"Counting only whitespace-separated words ({rows[0]['plain_words']:,}), the word perplexity is "
            f"{readable(rows[0]['plain_word_perplexity'])}."
        )
    if "certificate" in protocol:
        lines.append(CERTIFICATE[protocol["certificate"]["causal"]])
    return "\n".join(lines)


def aligned(table: Sequence[Sequence[str]], n_left: int) -> list[str]:
    """The rows of a table as lines of text; the first `n_left` columns are aligned to the left, the others right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < n_left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def readable(value: float) -> str:
    """A count as `1,234`; a figure as `1,234.5678`, or `1.8e33` from a billion on."""
    if isinstance(value, int):
        return f"{value:,}"
    if 1e9 <= value < math.inf:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.4f}"


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a report; an older file is kept under a numbered name. Numbers that are not finite become `null`."""
    finite = apply_to_collection(content, float, lambda value: value if math.isfinite(value) else None)
    with whole_file(path) as temporary:
        temporary.write_text(json_with_digest(finite), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as CSV with a header; an older file is kept under a numbered name."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return path
