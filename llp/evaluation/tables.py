"""Figures as tables of text, and as files that a program reads."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection

from llp.run_folder import whole_file

_CERTIFICATE = {
    True: "Certified: no logit of this model changed with a later token, and each probed one did with earlier tokens.",
    None: "NOT certified: whether this model reads what it predicts was not probed.",
}
_MOST_DOCUMENTS = 10
_COLUMNS = ("tokens", "words", "bytes", "loss", "perplexity", "word_perplexity", "bits_per_byte")


def format_table(rows: Sequence[dict[str, Any]], protocol: dict[str, Any]) -> str:
    """The rows as a table of text: for each the model's figures, and below them the unigram model's.

    Args:
        rows: That of the whole split, or of what was scored of it, and one for each document. The first ten documents
            of which something was scored are shown.
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
        least = "-" if protocol["context_least"] is None else f"{protocol['context_least']:,}"
        windows += (
            f": a token is predicted from {least} tokens at least after a document's first window, "
            f"{protocol['context_mean']:,.1f} on average"
        )
    lines += [f"{windows}.", f"Words: {protocol['word_count']}."]
    if rows[0]["plain_words"] != rows[0]["words"]:
        lines.append(
            f"By whitespace-separated words alone ({rows[0]['plain_words']:,}) the word perplexity is "
            f"{readable(rows[0]['plain_word_perplexity'])}."
        )
    if "certificate" in protocol:
        lines.append(_CERTIFICATE[protocol["certificate"]["causal"]])
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
    """A count as `1,234`; a figure as `1,234.5678`, from a thousand million on as `1.8e33`."""
    if isinstance(value, int):
        return f"{value:,}"
    if 1e9 <= value < math.inf:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.4f}"


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a report; an older one keeps a numbered name. Where a number is not finite, `null` stands for it."""
    finite = apply_to_collection(content, float, lambda value: value if math.isfinite(value) else None)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(finite, indent=1) + "\n", encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as a table with a head; an older one keeps a numbered name."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return path
