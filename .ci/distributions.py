"""Builds the wheel and the sdist of a commit, and tries them outside of the repository.

    python .ci/distributions.py build --out dist --repository https://github.com/OWNER/NAME --ref v0.2.0
    python .ci/distributions.py check dist/* --versions lowest newest

`build` makes the links and pictures of the README absolute, as a package index needs them, and adds the repository to
the metadata; without --repository both stay as they are. `check` installs each file into a fresh environment, with the
lowest or the newest versions that pyproject.toml allows, and runs the quickstart in an empty folder. Other arguments of
pip come from its own environment variables, such as PIP_EXTRA_INDEX_URL for torch's build for the CPU.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)")


def build(out: Path, repository: str | None, ref: str) -> None:
    """Build both files of the commit that is checked out."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        if repository is not None:
            point_to(repository, ref, Path(folder))
        for kind in ("sdist", "wheel"):
            hook = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
            command = [sys.executable, "-c", hook, str(out.resolve())]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def point_to(repository: str, ref: str, folder: Path) -> None:
    """Make the README's links absolute, and name the repository in the metadata."""
    readme, project = folder / "README.md", folder / "pyproject.toml"
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), repository, ref), encoding="utf-8")
    urls = {"Repository": repository, "Issues": f"{repository}/issues"}
    urls["Changelog"] = f"{repository}/blob/{ref}/CHANGELOG.md"
    lines = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    text = project.read_text(encoding="utf-8")
    header = re.search(r"^\[project\.urls\].*\n", text, re.MULTILINE)
    assert header is not None
    project.write_text(text[: header.end()] + lines + text[header.end() :], encoding="utf-8")


def absolute(readme: str, repository: str, ref: str) -> str:
    """The README with absolute links: pictures as they are, files as the host shows them."""

    def link(found: re.Match[str]) -> str:
        mark, text, path = found.groups()
        return f"{mark}[{text}]({repository}/{'raw' if mark else 'blob'}/{ref}/{path})"

    return LINK.sub(link, readme)


def check(files: list[Path], versions: list[str], unbound: list[str], steps: int) -> None:
    """Install each file and run the quickstart, in environments and folders of their own."""
    for file in files:
        for which in versions:
            with tempfile.TemporaryDirectory() as folder:
                try_one(file.resolve(), lowest(unbound) if which == "lowest" else [], Path(folder), steps)
            print(f"{file.name}: the quickstart runs with the {which} versions", flush=True)


def lowest(unbound: list[str]) -> list[str]:
    """The lower bounds of the dependencies as exact versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = [re.match(r"([\w-]+)(\[\w+\])?>=([\w.]+)", line) for line in project["dependencies"]]
    return [f"{bound[1]}=={bound[3]}" for bound in bounds if bound is not None and bound[1] not in unbound]


def try_one(file: Path, constraints: list[str], folder: Path, steps: int) -> None:
    """Install one file and run the quickstart for some steps."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    (folder / "constraints.txt").write_text("\n".join(constraints) + "\n", encoding="utf-8")
    (folder / "empty").mkdir()
    binaries = folder / "venv/bin"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": f"{binaries}:{environment['PATH']}", "HOME": str(folder)}
    last = "lightning_logs/quickstart/checkpoints/last.ckpt"
    for command in (
        f"pip install --quiet --disable-pip-version-check {file} -c {folder}/constraints.txt",
        f"llp fit --config configs/quickstart.yaml --name quickstart --trainer.max_steps {steps}",
        f"llp test --ckpt_path {last}",
    ):
        subprocess.run(command.split(), cwd=folder / "empty", env=environment, check=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    builds = commands.add_parser("build")
    builds.add_argument("--out", type=Path, default=Path("dist"))
    builds.add_argument("--repository", help="URL of the repository, without a slash at the end")
    builds.add_argument("--ref", default="main", help="the tag of the release")
    checks = commands.add_parser("check")
    checks.add_argument("files", type=Path, nargs="+")
    checks.add_argument("--versions", nargs="+", choices=["lowest", "newest"], default=["lowest", "newest"])
    checks.add_argument("--unbound", nargs="*", default=[], help="packages of which the lowest versions take any")
    checks.add_argument("--steps", type=int, default=250)
    given = parser.parse_args()
    if given.command == "build":
        build(given.out, given.repository, given.ref)
    else:
        check(given.files, given.versions, given.unbound, given.steps)


if __name__ == "__main__":
    main()
