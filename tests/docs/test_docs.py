"""The pictures are the code's own behaviour and the definition's; the README's set-up is what CI runs."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from helpers import reference

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import draw_patterns  # noqa: E402

LATENTS, SEGMENT = draw_patterns.LATENTS, draw_patterns.SEGMENT
SEES = {
    "transformer": reference.transformer_sees,
    "llp": reference.llp_sees(SEGMENT),
    "llp_look_back_0": reference.llp_sees(SEGMENT, look_back=0),
    "llp_look_back_2": reference.llp_sees(SEGMENT, look_back=2),
    "llp_dense_every_3": reference.llp_sees(SEGMENT),
    "sliding_window": reference.window_sees(draw_patterns.WINDOW),
    "shifted_segments": reference.llp_sees(SEGMENT, look_back=0),
    "perceiver_ar": reference.transformer_sees,
    "double_attention": reference.double_sees(LATENTS),
    "split_attention": reference.split_sees(LATENTS, SEGMENT),
    "compressed_attention": reference.double_sees(LATENTS),
}


@pytest.mark.parametrize("name", draw_patterns.MODELS)
def test_drawn_layers_are_the_definition(name):
    n = draw_patterns.N
    held = {
        "perceiver_ar": [n, LATENTS, LATENTS],
        "compressed_attention": [n, *[draw_patterns.COMPRESSED + LATENTS] * 2],
    }
    layers = draw_patterns.layers_see(draw_patterns.MODELS[name], n)
    assert [drawn.shape[1] for drawn in layers] == held.get(name, [n] * 3)
    for layer, drawn in enumerate(layers):
        entering = drawn.shape[1]
        n_out = n if name in draw_patterns.ALL_TRAINED else LATENTS
        if layer < 2 and name != "perceiver_ar":
            n_out = entering
        assert len(drawn) == n_out
        positions = range(entering - n_out, entering)
        sees = reference.transformer_sees if (name, layer) == ("llp_dense_every_3", 2) else SEES[name]
        assert [row.nonzero().flatten().tolist() for row in drawn] == [sees(i, entering) for i in positions]


def test_drawn_halves_are_the_definition():
    drawn = draw_patterns.layers_see(draw_patterns.MODELS["shifted_segments"], 20, head=1)[0]
    expected = [reference.shifted_sees(SEGMENT)(i, 20) for i in range(20)]
    assert [row.nonzero().flatten().tolist() for row in drawn] == expected


def test_pictures_are_up_to_date():
    for name, content in draw_patterns.pictures().items():
        assert (draw_patterns.IMAGES / name).read_text() == content, "run: python docs/draw_patterns.py"


def test_readme_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup = [line for line in readme.splitlines() if line.startswith("pip install")][:2]
    assert "llp fit --config configs/quickstart.yaml" in setup[0]
    assert "llp test --ckpt_path" in setup[0]
    assert setup[1].endswith("pytest")


def test_each_configuration_is_listed_and_each_that_is_named_exists():
    listed = (ROOT / "docs/configurations.md").read_text(encoding="utf-8")
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert set(re.findall(r"\(\.\./(configs/[^)]+)\)", listed)) == there
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for path in re.findall(r"(?<![/\w])configs/[\w./]+\w", page.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_links_lead_to_files():
    """On the site a link to a folder leads nowhere."""
    patterns = ("*.md", "docs/*.md", "benchmarks/**/*.md", "results/**/*.md")
    for page in (path for pattern in patterns for path in ROOT.glob(pattern)):
        for link in re.findall(r"\]\((?!\w+:)([^)\s#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).is_file(), f"{page.relative_to(ROOT)}: {link}"


def test_what_users_are_told_to_install_exists():
    """By the distribution's name: the package index's `llp` is somebody else's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    patterns = ("*.md", "docs/*.md", "llp/**/*.py", "datamodules/**/*.py")
    texts = [path.read_text(encoding="utf-8") for pattern in patterns for path in ROOT.glob(pattern)]
    named = {found for text in texts for found in re.findall(r"([\w-]+)\[([a-z]+(?:,[a-z]+)*)\]\"", text)}
    assert (project["name"], "tokenizers") in named
    assert {name for name, _ in named} == {project["name"]}
    assert {extra for _, extras in named for extra in extras.split(",")} <= project["optional-dependencies"].keys()


def test_the_guide_for_another_architecture_works(run, work, wikitext, monkeypatch):
    """The page's example, as it stands there: one file and one YAML, then fit, test and generate."""
    guide = (ROOT / "docs/own_architecture.md").read_text(encoding="utf-8")
    code, config = re.findall(r'``` ?\w+ title="[^"]+"\n(.*?)```', guide, re.DOTALL)
    (work / "window_with_sinks.py").write_text(code)
    (work / "window_with_sinks.yaml").write_text(config)
    monkeypatch.syspath_prepend(work)
    assert len(code.splitlines()) < 35
    small = ["--data", "datamodules.WikiText103", "--data.init_args.path", wikitext, "--data.init_args.window_len", 32]
    small += ["--data.init_args.tokenizer", "datamodules.Bytes", "--data.init_args.cache_dir", work / "cache"]
    small += ["--trainer.max_steps", 2, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    small += ["--model.init_args.dim", 16, "--model.init_args.n_layers", 2, "--model.init_args.window", 6]
    best = "lightning_logs/run/checkpoints/best.ckpt"
    status, _, err = run("fit", "--config", "window_with_sinks.yaml", "--name", "run", *small)
    assert status == 0, err
    status, out, err = run("test", "--ckpt_path", best)
    assert status == 0, err
    assert "WindowWithSinks" in out
    assert "Probed for causality" in out
    status, out, err = run("generate", "--ckpt_path", best, "--max_tokens", 5)
    assert status == 0, err
    assert out

    import window_with_sinks

    model = window_with_sinks.WindowWithSinks(vocab_size=9, dim=8, n_layers=1, n_heads=1, window=3, n_sinks=2)
    expected = [[j for j in range(i + 1) if j < 2 or i - j < 3] for i in range(7)]
    mask = model.layers()[0].pattern.mask(1, 7, 7)[0]
    assert [row.nonzero().flatten().tolist() for row in mask] == expected
