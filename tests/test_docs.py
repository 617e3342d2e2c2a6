"""The pictures are the code's own behaviour and the definition's; the README's commands are those that CI runs."""

import re
import sys
from pathlib import Path

import pytest

import reference
from llp import LLP, Transformer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import draw_patterns  # noqa: E402


@pytest.mark.parametrize(
    ("model", "sees"),
    [
        (Transformer(**draw_patterns.SIZES), reference.transformer_sees),
        (LLP(**draw_patterns.SIZES, segment_len=4), reference.llp_sees(4)),
    ],
    ids=["Transformer", "LLP"],
)
def test_drawn_layers_are_the_definition(model, sees):
    for layer in range(2):
        drawn = draw_patterns.layer_sees(model, layer, 18)
        assert [row.nonzero().flatten().tolist() for row in drawn] == [sees(i, 18) for i in range(18)]


def test_drawn_reach_is_the_definition():
    drawn = draw_patterns.model_sees(LLP(**draw_patterns.SIZES, segment_len=4), 18)
    assert [row.nonzero().flatten().tolist() for row in drawn] == [
        list(range(max(0, (i // 4 - 2) * 4), i + 1)) for i in range(18)
    ]


def test_pictures_are_up_to_date():
    for name, content in draw_patterns.pictures().items():
        assert (draw_patterns.IMAGES / name).read_text() == content, "run: python docs/draw_patterns.py"


def test_readme_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup = [line for line in readme.splitlines() if line.startswith("pip install")][:2]
    assert "llp fit --config configs/quickstart.yaml" in setup[0]
    assert "llp test --ckpt_path" in setup[0]
    assert setup[1].endswith("pytest")
    for path in re.findall(r"(?<![/\w])(?:configs|docs|benchmarks)/[\w./]+\w", readme):
        assert (ROOT / path).exists(), path
