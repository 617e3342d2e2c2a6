"""The locked versions are all that the package asks for, each with hashes, and from nowhere in particular."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements/ci.txt").read_text(encoding="utf-8")
OLDER = (ROOT / "requirements/transformers_4_57.txt").read_text(encoding="utf-8")


def locked(text: str) -> dict[str, Version]:
    pairs = re.findall(r"^([a-z0-9-]+)==(\S+) \\$", text, re.MULTILINE)
    return {name: Version(version) for name, version in pairs}


def test_all_that_is_asked_for_is_locked_in_a_version_that_will_do():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    needed = [one for one in map(Requirement, asked) if one.name != project["name"]]
    versions = locked(LOCK)
    assert len(needed) > 25
    assert {str(one) for one in needed if not one.specifier.contains(versions[canonicalize_name(one.name)])} == set()


@pytest.mark.parametrize("text", [LOCK, OLDER])
def test_each_file_has_its_hash_and_no_host(text):
    for entry in re.split(r"\n(?=[a-z])", text)[1:]:
        assert re.fullmatch(r"[a-z0-9-]+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n?", entry), entry.splitlines()[0]
    assert "//" not in text
    assert not re.search(r"^-", text, re.MULTILINE)


def test_the_older_transformers_is_the_one_that_is_promised():
    assert str(locked(OLDER)["transformers"]).startswith("4.57.")
