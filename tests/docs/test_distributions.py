"""What a package index shows: a readme whose links lead somewhere, and metadata that agree with each other."""

import importlib.util
import re
import tomllib
from pathlib import Path

import llp

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("distributions", ROOT / ".ci/distributions.py")
distributions = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(distributions)


def test_links_of_the_readme_are_absolute_and_lead_to_files():
    host = "https://host.example/owner/name"
    readme = distributions.absolute((ROOT / "README.md").read_text(encoding="utf-8"), host, "v1")
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", readme)
    assert all(link.startswith("https://") for _, link in links)
    ours = [(mark, link) for mark, link in links if link.startswith(host)]
    assert len(ours) > 20
    for mark, link in ours:
        kind, ref, path = link.removeprefix(f"{host}/").split("/", 2)
        assert (kind, ref) == ("raw" if mark else "blob", "v1")
        assert (ROOT / path.partition("#")[0]).is_file()


def test_the_repository_is_named_in_the_metadata(tmp_path):
    for name in ("README.md", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    distributions.point_to("https://host.example/owner/name", "v1", tmp_path)
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert {"Repository", "Issues", "Changelog", "Paper"} == urls.keys()


def test_lowest_versions_are_the_lower_bounds():
    lowest = distributions.lowest(unbound=["torch"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert len(lowest) == len(project["dependencies"]) - 1
    assert "numpy==2.0" in lowest
    assert not any(line.startswith("torch=") for line in lowest)


def test_the_version_is_said_once():
    assert f"\nversion: {llp.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {llp.__version__} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
