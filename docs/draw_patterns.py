"""Draws who attends to whom, as the code itself behaves.

Run `python docs/draw_patterns.py`. Each picture is an SVG in docs/images/: a row is a position that queries, a column
one that is seen. Dark is a part's view of itself (a segment's, the latents', the history's), light its view of another.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from llp import LLP, CompressedAttention, DoubleAttention, PerceiverAR, SplitAttention, Transformer
from llp.language_model import LanguageModel

IMAGES = Path(__file__).parent / "images"
CELL, GAP, TITLE, CAPTION = 12, 40, 28, 20
N, LATENTS, SEGMENT, COMPRESSED = 20, 8, 4, 5
HISTORY = N - LATENTS
SIZES = {"vocab_size": 2, "dim": 8, "n_layers": 3, "n_heads": 1}
MODELS: dict[str, LanguageModel] = {
    "transformer": Transformer(**SIZES),
    "llp": LLP(**SIZES, segment_len=SEGMENT),
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


def layer_sees(model: LanguageModel, layer: int, n: int) -> Tensor:
    """(n_out, n) booleans: which of a layer's n positions each position that leaves it gives weight to.

    With equal scores and the values of position j set to the j-th unit vector, the output is the weights themselves.
    """
    pattern = model.layer_pattern(layer)
    query = torch.zeros(1, 1, min(pattern.n_out or n, n), n)
    weights = pattern.attend(query, torch.zeros(1, 1, n, n), torch.eye(n).expand(1, 1, n, n))
    return weights[0, 0] > 0


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


def svg(panels: list[Panel]) -> str:
    """Panels side by side, aligned at their last row and column."""
    side = N * CELL
    width, height = len(panels) * (side + GAP) + GAP, side + TITLE + 2 * CAPTION + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        left, top = GAP + number * (side + GAP), GAP + TITLE - CAPTION
        lines += [
            f'<text x="{left}" y="{top - 10}" font-size="15" font-weight="bold" fill="#222">{panel.title}</text>',
            *cells(panel, left + side, top + side),
            f'<text x="{left}" y="{top + side + CAPTION}" font-size="12" fill="#495057">{panel.caption}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


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
        colour = "#1c7ed6" if part(row + n_columns - n_rows) == part(column) else "#74c0fc"
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
    if name in ("transformer", "llp"):
        return list(range(SEGMENT, n, SEGMENT))
    segments = range(SEGMENT, n - LATENTS, SEGMENT) if name == "split_attention" else ()
    return [*segments, n - LATENTS] if n > LATENTS else []


def layers_and_stack(name: str) -> list[Panel]:
    """An architecture's different layers, then all of them together."""
    model = MODELS[name]
    panels: list[Panel] = []
    spans: list[list[int]] = []
    for layer, n in enumerate(positions_held(model, N)):
        matrix = layer_sees(model, layer, n)
        if panels and torch.equal(panels[-1].matrix, matrix):
            spans[-1].append(layer)
        else:
            panels.append(Panel("", f"{n} positions enter, {len(matrix)} query", matrix, parts_of(name, n)))
            spans.append([layer])
    named = [panel._replace(title=span_title(span, model.n_layers)) for panel, span in zip(panels, spans, strict=True)]
    caption = "tokens behind the scored positions"
    return [*named, Panel("The whole stack", caption, model_sees(model, N), parts_of(name, N))]


def span_title(layers: list[int], n_layers: int) -> str:
    """The name of consecutive layers that attend alike."""
    if len(layers) == n_layers:
        return "Every layer"
    return f"Layer {layers[0]}" if len(layers) == 1 else f"Layers {layers[0]} to {layers[-1]}"


def pictures() -> dict[str, str]:
    """File names and contents of all pictures."""
    segments = parts_of("llp", N)
    dense, llp = layer_sees(MODELS["transformer"], 0, N), layer_sees(MODELS["llp"], 0, N)
    two_layers = model_sees(LLP(**{**SIZES, "n_layers": 2}, segment_len=SEGMENT), N)
    overview = [
        Panel("Dense Transformer", "all earlier positions", dense, segments),
        Panel("LLP", "own segment and the one before", llp, segments),
        Panel("LLP through 2 layers", "tokens behind each position", two_layers, segments),
    ]
    return {"overview.svg": svg(overview), **{f"{name}.svg": svg(layers_and_stack(name)) for name in MODELS}}


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, content in pictures().items():
        (IMAGES / name).write_text(content)
        print(IMAGES / name)
