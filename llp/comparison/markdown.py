"""Numbers, names and tables as a report in Markdown shows them."""

import math
from collections.abc import Collection, Iterable, Sequence

from llp.comparison.study import Record

NOTHING = "-"
BUDGETS = {
    "windows": "equal windows",
    "positions": "equal trained positions",
    "flops": "equal FLOPs",
    "seconds": "equal seconds",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], n_left: int = 1) -> list[str]:
    """The lines of a table; the first `n_left` columns are aligned to the left, the others to the right."""
    rule = ["---" if number < n_left else "---:" for number in range(len(head))]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (head, rule, *rows)]


def number(value: float | None, decimals: int = 4) -> str:
    """A figure with thousands separated, a large or small one as `1.23e9`; a dash for what isn't known or finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    is_plain = decimals == 0 or value == 0 or 10.0**-decimals <= abs(value) < 1e6
    return f"{value:,.{decimals}f}" if is_plain else power(value)


def signed(value: float | None, decimals: int = 4) -> str:
    """A difference, with its sign."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:+.{decimals}f}"


def power(value: float | None) -> str:
    """A large or small figure as `4.80e14`, `4.80e-7`."""
    if value is None:
        return NOTHING
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def probability(p: float | None) -> str:
    """A p value with as many digits as mean something."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def counted(n: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def run_names(records: Sequence[Record]) -> str:
    """Runs by the hash in their names and their seeds, `3f2a91bc-s0,1,2`."""
    seeds: dict[str, list[str]] = {}
    for record in records:
        name, _, seed = record.run.rpartition("-s")
        seeds.setdefault(name.removeprefix(f"{record.arm}-"), []).append(seed)
    return "; ".join(f"`{name}-s{','.join(numbers)}`" for name, numbers in seeds.items()) or NOTHING


def image(drawn: Collection[str], name: str, alt: str) -> list[str]:
    """The lines that show a picture; none if it wasn't drawn."""
    return [f"![{alt}]({name})", ""] if name in drawn else []
