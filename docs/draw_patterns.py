"""Draws who attends to whom in every architecture: one SVG each in docs/images/, by `python docs/draw_patterns.py`.

A row is a position that queries, a column one that is attended to. Dark cells lie within one part (a segment, the
history or the latents), light cells across two.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import llp
from llp.evaluation.colours import COLOURS, lighter
from llp.training_module import TrainingModule

IMAGES = Path(__file__).parent / "images"
CELL, GAP = 12, 48
TOP, AXIS, LEGEND, BOTTOM = 56, 20, 48, 64  # above the matrices; below them the axis' name, the legend, the end
N, LATENTS, SEGMENT, WINDOW, COMPRESSED = 20, 8, 4, 6, 5
SIZES = {"vocab_size": 2, "dim": 8, "n_layers": 3, "n_heads": 2}
SPLIT = {"latent_len": LATENTS, "segment_len": SEGMENT}
COMPRESSION = {"latent_len": LATENTS, "history_len": N - LATENTS, "compressed_len": COMPRESSED}
MODELS: dict[str, TrainingModule] = {
    "transformer": llp.Transformer(**SIZES),
    "llp": llp.LLP(**SIZES, segment_len=SEGMENT),
    "llp_look_back_0": llp.LLP(**SIZES, segment_len=SEGMENT, look_back=0),
    "llp_look_back_2": llp.LLP(**SIZES, segment_len=SEGMENT, look_back=2),
    "llp_dense_every_3": llp.LLP(**SIZES, segment_len=SEGMENT, dense_every=3),
    "sliding_window": llp.SlidingWindow(**SIZES, window=WINDOW),
    "shifted_segments": llp.ShiftedSegments(**SIZES, segment_len=SEGMENT),
    "perceiver_ar": llp.PerceiverAR(**SIZES, latent_len=LATENTS),
    "double_attention": llp.DoubleAttention(**SIZES, latent_len=LATENTS),
    "split_attention": llp.SplitAttention(**SIZES, **SPLIT),
    "compressed_attention": llp.CompressedAttention(**SIZES, **COMPRESSION),
}
ALL_TRAINED = [name for name in MODELS if "latent_len" not in MODELS[name].hparams]
SEGMENTS = ("in the same segment", "in an earlier segment")
LEGENDS = {
    **dict.fromkeys(MODELS, ("among the latents, or within the history", "from latents to history")),
    **dict.fromkeys(ALL_TRAINED, SEGMENTS),
    "perceiver_ar": ("among the latents", "from latents to history"),
    "split_attention": ("among the latents, or within a segment of the history", "from latents to history"),
}
"""What the dark and the light shade of a picture stand for."""


class Panel(NamedTuple):
    """One matrix; rows and columns are the last positions of the input, `parts` where segments or latents begin."""

    title: str
    caption: str
    matrix: Tensor
    parts: list[int]
    colour: str
    rows: str = "position that queries"
    columns: str = "position that is attended to"


def layers_see(model: TrainingModule, n: int, head: int = 0) -> list[Tensor]:
    """For each layer, which of the positions that enter it those that leave it see: (n_out, n_in) booleans."""
    masks = [
        layer.pattern.in_window(lengths.n_in).mask(SIZES["n_heads"], lengths.n_out, lengths.n_in)
        for layer, lengths in zip(model.layers(), model.geometry.lengths(n), strict=True)
    ]
    return [mask[head % len(mask)] for mask in masks]


def panels_of(name: str) -> list[Panel]:
    """The different layers of an architecture, or the two halves of its heads, then all layers together."""
    model, colour = MODELS[name], COLOURS[type(MODELS[name]).__name__]
    whole = stack(model, "All layers together", parts_of(name, N))
    layers = layers_see(model, N)
    if name == "shifted_segments":
        shift, shifted = SEGMENT // 2, layers_see(model, N, head=1)[0]
        parts = list(range(shift, N, SEGMENT))
        first_half = Panel("Half of the heads", f"segments of {SEGMENT}", layers[0], parts_of(name, N), colour)
        return [first_half, Panel("The other half", f"shifted by {shift}", shifted, parts, colour), whole]
    panels, first = [], 0
    for last, matrix in enumerate(layers):
        if last + 1 < len(layers) and torch.equal(matrix, layers[last + 1]):
            continue  # consecutive layers that see alike share a panel
        title = "Every layer" if (first, last + 1) == (0, len(layers)) else f"Layers {first} to {last}"
        n_out, n_in = matrix.shape
        caption = f"{n_in} positions, {n_out} of them query"
        panels.append(
            Panel(f"Layer {first}" if first == last else title, caption, matrix, parts_of(name, n_in), colour)
        )
        first = last + 1
    return [*panels, whole]


def parts_of(name: str, n: int) -> list[int]:
    """Where segments and latents begin among the n positions that enter a layer."""
    if name in ALL_TRAINED:
        return list(range(SEGMENT, n, SEGMENT))
    segments = range(SEGMENT, n - LATENTS, SEGMENT) if name == "split_attention" else ()
    return [*segments, n - LATENTS] if n > LATENTS else []


def stack(model: TrainingModule, title: str, parts: list[int]) -> Panel:
    """What the positions with a loss read through all layers."""
    colour, caption = COLOURS[type(model).__name__], "what each position with a loss reads"
    return Panel(
        title, caption, model.geometry.reads(N), parts, colour, "position with a loss", "position that is read"
    )


def svg(panels: list[Panel], legend: tuple[str, str]) -> str:
    """Panels side by side, aligned at their last row and column, above the legend."""
    n_rows = max(11, *(len(panel.matrix) for panel in panels))  # the name of the rows takes 11 of them
    side, bottom = N * CELL, TOP + n_rows * CELL
    width, height = len(panels) * (side + GAP) + GAP // 2, bottom + BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        left = GAP + number * (side + GAP)
        lines += [
            f'<text x="{left}" y="{TOP - 30}" font-size="15" font-weight="bold" fill="#222">{panel.title}</text>',
            f'<text x="{left}" y="{TOP - 12}" font-size="12" fill="#495057">{panel.caption}</text>',
            *matrix_lines(panel, left + side, bottom),
        ]
    colours, x, y = dict.fromkeys(panel.colour for panel in panels), GAP, bottom + LEGEND
    shades = [(list(colours), legend[0]), ([lighter(colour) for colour in colours], legend[1])]
    for squares, text in [*shades, (["#f1f3f5"], "no attention")]:
        lines += [square(x + CELL * number, y - 10, colour) for number, colour in enumerate(squares)]
        x += CELL * len(squares)
        lines.append(f'<text x="{x + 5}" y="{y}" font-size="12" fill="#222">{text}</text>')
        x += 7 * len(text) + 24
    return "\n".join([*lines, "</svg>", ""])


def square(x: int, y: int, colour: str) -> str:
    """One cell."""
    return f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{colour}"/>'


def matrix_lines(panel: Panel, right: int, bottom: int) -> list[str]:
    """A matrix with its lower right corner at (right, bottom), lines where its parts begin, and the axes' names."""
    n_rows, n_columns = panel.matrix.shape
    left, top = right - n_columns * CELL, bottom - n_rows * CELL
    lines = [f'<rect x="{left}" y="{top}" width="{n_columns * CELL}" height="{n_rows * CELL}" fill="#f1f3f5"/>']
    for row, column in panel.matrix.nonzero().tolist():
        query = row + n_columns - n_rows
        across = any(column < start <= query or query < start <= column for start in panel.parts)
        lines.append(square(left + column * CELL, top + row * CELL, lighter(panel.colour) if across else panel.colour))
    for start in panel.parts:
        x, y = left + start * CELL - 0.5, bottom - (n_columns - start) * CELL - 0.5
        lines += [f'<path d="M{x} {top}V{bottom}" stroke="#adb5bd"/>']
        lines += [f'<path d="M{left} {y}H{right}" stroke="#adb5bd"/>'] if y > top else []
    style = 'font-size="12" fill="#495057"'
    return [
        *lines,
        f'<text x="{right}" y="{bottom + AXIS}" text-anchor="end" {style}>{panel.columns}</text>',
        f'<text transform="translate({left - 10} {bottom}) rotate(-90)" {style}>{panel.rows}</text>',
    ]


def pictures() -> dict[str, str]:
    """File names and contents of all pictures."""
    segments = parts_of("llp", N)
    dense, local = (layers_see(MODELS[name], N)[0] for name in ("transformer", "llp"))
    two_layers = llp.LLP(**{**SIZES, "n_layers": 2}, segment_len=SEGMENT)
    overview = [
        Panel("Dense Transformer, one layer", "all earlier positions", dense, segments, COLOURS["Transformer"]),
        Panel("LLP, one layer", "its own segment and the one before", local, segments, COLOURS["LLP"]),
        stack(two_layers, "LLP, two layers together", segments),
    ]
    patterns = {f"{name}.svg": svg(panels_of(name), LEGENDS[name]) for name in MODELS}
    return {"overview.svg": svg(overview, SEGMENTS), **patterns}


if __name__ == "__main__":
    for name, content in pictures().items():
        (IMAGES / name).write_text(content)
        print(IMAGES / name)
