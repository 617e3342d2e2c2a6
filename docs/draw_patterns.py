"""Draws who attends to whom, from the behaviour of the code itself.

Run `python docs/draw_patterns.py`. Each picture is an SVG in docs/images/: a row is a position that queries, a column
one that is attended to. Dark cells lie within one part (a segment, the history or the latents), light ones across two.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from llp import (
    LLP,
    CompressedAttention,
    DoubleAttention,
    PerceiverAR,
    ShiftedSegments,
    SlidingWindow,
    SplitAttention,
    Transformer,
)
from llp.evaluation.colours import COLOURS, lighter
from llp.language_model import LanguageModel

IMAGES = Path(__file__).parent / "images"
CELL, GAP = 12, 48
TOP, AXIS, LEGEND, BOTTOM = 56, 20, 48, 64  # of the matrices; below them: the axis' name, the legend, the end
N, LATENTS, SEGMENT, WINDOW, COMPRESSED = 20, 8, 4, 6, 5
HISTORY = N - LATENTS
SIZES = {"vocab_size": 2, "dim": 8, "n_layers": 3, "n_heads": 1}
MODELS: dict[str, LanguageModel] = {
    "transformer": Transformer(**SIZES),
    "llp": LLP(**SIZES, segment_len=SEGMENT),
    "llp_look_back_0": LLP(**SIZES, segment_len=SEGMENT, look_back=0),
    "llp_look_back_2": LLP(**SIZES, segment_len=SEGMENT, look_back=2),
    "llp_dense_every_3": LLP(**SIZES, segment_len=SEGMENT, dense_every=3),
    "sliding_window": SlidingWindow(**SIZES, window=WINDOW),
    "shifted_segments": ShiftedSegments(**{**SIZES, "n_heads": 2}, segment_len=SEGMENT),
    "perceiver_ar": PerceiverAR(**SIZES, latent_len=LATENTS),
    "double_attention": DoubleAttention(**SIZES, latent_len=LATENTS),
    "split_attention": SplitAttention(**SIZES, latent_len=LATENTS, segment_len=SEGMENT),
    "compressed_attention": CompressedAttention(
        **SIZES, latent_len=LATENTS, history_len=HISTORY, compressed_len=COMPRESSED
    ),
}


class Panel(NamedTuple):
    """One matrix: rows and columns are the last positions of the input, `parts` where segments or latents begin."""

    title: str
    caption: str
    matrix: Tensor
    parts: list[int]
    colour: str
    rows: str = "position that queries"
    columns: str = "position that is attended to"


class Legend(NamedTuple):
    """What the two shades of a picture stand for."""

    dark: str
    light: str


ALL_TRAINED = [name for name in MODELS if "latent_len" not in MODELS[name].hparams]
SEGMENTS = Legend("in the same segment", "in an earlier segment")
LEGENDS = {
    **dict.fromkeys(ALL_TRAINED, SEGMENTS),
    "perceiver_ar": Legend("among the latents", "from latents to history"),
    "split_attention": Legend("among the latents, or within a segment of the history", "from latents to history"),
}
LATENTS_AND_HISTORY = Legend("among the latents, or within the history", "from latents to history")


def layer_sees(model: LanguageModel, layer: int, n: int, head: int = 0) -> Tensor:
    """(n_out, n) booleans: which of a layer's n positions each position that leaves it gives weight to in a head.

    With equal scores and the values of position j set to the j-th unit vector, the output is the weights themselves.
    """
    pattern = model.layer_pattern(layer)
    n_heads = model.settings.n_heads
    query, key = torch.zeros(1, n_heads, min(pattern.n_out or n, n), n), torch.zeros(1, n_heads, n, n)
    weights = pattern.attend(query, key, torch.eye(n).repeat(1, n_heads, 1, 1))
    return weights[0, head] > 0


def positions_held(model: LanguageModel, n: int) -> list[int]:
    """How many positions each layer holds for an input of n tokens."""
    held = [n]
    for layer in range(model.n_layers - 1):
        n_out = min(model.layer_pattern(layer).n_out or held[-1], held[-1])
        if layer == 0 and (compress := model.compression()) is not None:
            n_out = compress(torch.zeros(1, n_out, 1)).shape[1]
        held.append(n_out)
    return held


def model_sees(model: LanguageModel, n: int) -> Tensor:
    """(T, N) booleans: which tokens have a gradient in each scored position's logits, through all layers."""
    torch.manual_seed(0)
    model.configure_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.double()
    embedded = torch.randn(1, n, SIZES["dim"], dtype=torch.float64, requires_grad=True)
    hook = model.decoder.embed.register_forward_hook(lambda module, args, output: embedded)
    logits = model(torch.zeros(1, n, dtype=torch.long))[0, :, 0]
    hook.remove()
    rows = [torch.autograd.grad(logit, embedded, retain_graph=True)[0][0] for logit in logits]
    return torch.stack(rows).abs().amax(-1) > 0


def svg(panels: list[Panel], legend: Legend) -> str:
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
            *cells(panel, left + side, bottom),
            *axis_names(panel, left + side, bottom),
        ]
    colours = list(dict.fromkeys(panel.colour for panel in panels))
    return "\n".join([*lines, *legend_lines(legend, colours, bottom + LEGEND), "</svg>", ""])


def axis_names(panel: Panel, right: int, bottom: int) -> list[str]:
    """The names of rows and columns, beside a matrix with its lower right corner at (right, bottom)."""
    left = right - panel.matrix.shape[1] * CELL
    style = 'font-size="12" fill="#495057"'
    return [
        f'<text x="{right}" y="{bottom + AXIS}" text-anchor="end" {style}>{panel.columns}</text>',
        f'<text transform="translate({left - 10} {bottom}) rotate(-90)" {style}>{panel.rows}</text>',
    ]


def legend_lines(legend: Legend, colours: list[str], y: int) -> list[str]:
    """A square of each colour before what its shade stands for, and a grey one."""
    lines, x = [], GAP
    for shades, text in (
        (colours, legend.dark),
        ([lighter(colour) for colour in colours], legend.light),
        (["#f1f3f5"], "no attention"),
    ):
        for shade in shades:
            lines.append(f'<rect x="{x}" y="{y - 10}" width="{CELL - 1}" height="{CELL - 1}" fill="{shade}"/>')
            x += CELL
        lines.append(f'<text x="{x + 5}" y="{y}" font-size="12" fill="#222">{text}</text>')
        x += 7 * len(text) + 24
    return lines


def cells(panel: Panel, right: int, bottom: int) -> list[str]:
    """A panel's matrix with its lower right corner at (right, bottom), and lines where its parts begin."""
    n_rows, n_columns = panel.matrix.shape
    left, top = right - n_columns * CELL, bottom - n_rows * CELL
    lines = [
        f'<rect x="{left}" y="{top}" width="{n_columns * CELL}" height="{n_rows * CELL}" fill="#f1f3f5"/>',
    ]

    def part(position: int) -> int:
        return sum(position >= start for start in panel.parts)

    for row, column in panel.matrix.nonzero().tolist():
        is_own = part(row + n_columns - n_rows) == part(column)
        colour = panel.colour if is_own else lighter(panel.colour)
        x, y = left + column * CELL, top + row * CELL
        lines.append(f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{colour}"/>')
    for start in panel.parts:
        x, y = left + start * CELL - 0.5, bottom - (n_columns - start) * CELL - 0.5
        lines.append(f'<path d="M{x} {top}V{bottom}" stroke="#adb5bd"/>')
        if y > top:
            lines.append(f'<path d="M{left} {y}H{right}" stroke="#adb5bd"/>')
    return lines


def parts_of(name: str, n: int) -> list[int]:
    """Where segments and latents begin among the n positions that a layer holds."""
    if name in ALL_TRAINED:
        return list(range(SEGMENT, n, SEGMENT))
    segments = range(SEGMENT, n - LATENTS, SEGMENT) if name == "split_attention" else ()
    return [*segments, n - LATENTS] if n > LATENTS else []


def halves_and_stack(name: str) -> list[Panel]:
    """What each half of the heads sees in a layer, then all layers together."""
    model, shift = MODELS[name], SEGMENT // 2
    colour, parts, shifted = COLOURS[type(model).__name__], parts_of(name, N), list(range(shift, N, SEGMENT))
    return [
        Panel("Half of the heads", f"segments of {SEGMENT}", layer_sees(model, 0, N, head=0), parts, colour),
        Panel("The other half", f"shifted by {shift}", layer_sees(model, 0, N, head=1), shifted, colour),
        stack(model, "All layers together", parts),
    ]


def layers_and_stack(name: str) -> list[Panel]:
    """An architecture's different layers, then all of them together."""
    model = MODELS[name]
    colour = COLOURS[type(model).__name__]
    panels: list[Panel] = []
    spans: list[list[int]] = []
    for layer, n in enumerate(positions_held(model, N)):
        matrix = layer_sees(model, layer, n)
        if panels and torch.equal(panels[-1].matrix, matrix):
            spans[-1].append(layer)
        else:
            panels.append(Panel("", f"{n} positions, {len(matrix)} of them query", matrix, parts_of(name, n), colour))
            spans.append([layer])
    named = [panel._replace(title=span_title(span, model.n_layers)) for panel, span in zip(panels, spans, strict=True)]
    return [*named, stack(model, "All layers together", parts_of(name, N))]


def stack(model: LanguageModel, title: str, parts: list[int]) -> Panel:
    """What the scored positions read through all layers."""
    colour = COLOURS[type(model).__name__]
    caption = "what each position with a loss reads"
    return Panel(title, caption, model_sees(model, N), parts, colour, "position with a loss", "position that is read")


def span_title(layers: list[int], n_layers: int) -> str:
    """The name of consecutive layers that attend alike."""
    if len(layers) == n_layers:
        return "Every layer"
    return f"Layer {layers[0]}" if len(layers) == 1 else f"Layers {layers[0]} to {layers[-1]}"


def pictures() -> dict[str, str]:
    """File names and contents of all pictures."""
    segments = parts_of("llp", N)
    dense, llp = layer_sees(MODELS["transformer"], 0, N), layer_sees(MODELS["llp"], 0, N)
    two_layers = LLP(**{**SIZES, "n_layers": 2}, segment_len=SEGMENT)
    overview = [
        Panel("Dense Transformer, one layer", "all earlier positions", dense, segments, COLOURS["Transformer"]),
        Panel("LLP, one layer", "its own segment and the one before", llp, segments, COLOURS["LLP"]),
        stack(two_layers, "LLP, two layers together", segments),
    ]
    panels = {name: layers_and_stack(name) for name in MODELS} | {
        "shifted_segments": halves_and_stack("shifted_segments")
    }
    patterns = {f"{name}.svg": svg(found, LEGENDS.get(name, LATENTS_AND_HISTORY)) for name, found in panels.items()}
    return {"overview.svg": svg(overview, SEGMENTS), **patterns}


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, content in pictures().items():
        (IMAGES / name).write_text(content)
        print(IMAGES / name)
