"""Draws who attends to whom, as the code itself behaves.

Run `python docs/draw_patterns.py`. Each picture is an SVG in docs/images/: a row is a position that queries, a column
one that is seen.
"""

from pathlib import Path

import torch
from torch import Tensor

from llp import LLP, Transformer
from llp.language_model import LanguageModel

IMAGES = Path(__file__).parent / "images"
CELL, GAP, TITLE, CAPTION = 12, 40, 28, 20
SIZES = {"vocab_size": 2, "dim": 8, "n_layers": 2, "n_heads": 1}


def layer_sees(model: LanguageModel, layer: int, n: int) -> Tensor:
    """(N, N) booleans: which positions each query of a layer gives weight to.

    With equal scores and the values of position j set to the j-th unit vector, the output is the weights themselves.
    """
    flat = torch.zeros(1, 1, n, n)
    weights = model.layer_pattern(layer).attend(flat, flat, torch.eye(n).expand(1, 1, n, n))
    return weights[0, 0] > 0


def model_sees(model: LanguageModel, n: int) -> Tensor:
    """(N, N) booleans: which tokens have a gradient in each position's logits, through all layers."""
    torch.manual_seed(0)
    model.configure_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.double()
    embedded = torch.randn(1, n, 8, dtype=torch.float64, requires_grad=True)
    hook = model.decoder.embed.register_forward_hook(lambda module, args, output: embedded)
    logits = model(torch.zeros(1, n, dtype=torch.long))[0, :, 0]
    hook.remove()
    rows = [torch.autograd.grad(logit, embedded, retain_graph=True)[0][0] for logit in logits]
    return torch.stack(rows).abs().amax(-1) > 0


def svg(panels: list[tuple[str, str, Tensor]], segment_len: int) -> str:
    """Panels side by side: title, caption below, matrix. Thin lines stand between segments."""
    n = len(panels[0][2])
    side = n * CELL
    width, height = len(panels) * (side + GAP) + GAP, side + TITLE + 2 * CAPTION + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, (title, caption, matrix) in enumerate(panels):
        left, top = GAP + number * (side + GAP), GAP + TITLE - CAPTION
        lines.append(f'<text x="{left}" y="{top - 10}" font-size="15" font-weight="bold" fill="#222">{title}</text>')
        lines.append(f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="#f1f3f5"/>')
        for row, column in matrix.nonzero().tolist():
            own = row // segment_len == column // segment_len
            x, y = left + column * CELL, top + row * CELL
            colour = "#1c7ed6" if own else "#74c0fc"
            lines.append(f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{colour}"/>')
        for edge in range(segment_len, n, segment_len):
            at = edge * CELL - 0.5
            lines.append(f'<path d="M{left + at} {top}v{side}M{left} {top + at}h{side}" stroke="#adb5bd"/>')
        lines.append(f'<text x="{left}" y="{top + side + CAPTION}" font-size="12" fill="#495057">{caption}</text>')
    return "\n".join([*lines, "</svg>", ""])


def pictures() -> dict[str, str]:
    """File names and contents of all pictures."""
    n, segment_len = 20, 4
    dense, llp = Transformer(**SIZES), LLP(**SIZES, segment_len=segment_len)
    panels = [
        ("Dense Transformer", "all earlier positions", layer_sees(dense, 0, n)),
        ("LLP", "own segment and the one before", layer_sees(llp, 0, n)),
        ("LLP through 2 layers", "tokens that the output depends on", model_sees(llp, n)),
    ]
    return {"llp.svg": svg(panels, segment_len)}


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, content in pictures().items():
        (IMAGES / name).write_text(content)
        print(IMAGES / name)
