"""A title with labelled lines below it, and numbers with a unit."""

from collections.abc import Sequence


def text_block(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """The title, and below it label and text of each row; all lines of the texts in one column."""
    indent = 4 + max((len(label) for label, _ in rows), default=0)
    lines = [title]
    for label, text in rows:
        first, *others = text.splitlines()
        lines += [f"  {label:<{indent - 2}}{first}", *(f"{'':<{indent}}{other}" for other in others)]
    return "\n".join(lines)


def with_unit(value: float, unit: str) -> str:
    """Three digits and an SI prefix: 95.2e9 "FLOP/s" is "95.2 GFLOP/s"."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{value:.3g} {prefixes[0]}{unit}"
