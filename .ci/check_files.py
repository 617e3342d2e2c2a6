"""No stray file at the root of the repository; no long line in the files that are named, tables and URLs aside."""

import subprocess
import sys
from pathlib import Path

AT_ROOT = {
    *(".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"),
    *("LICENSE", "README.md", "SECURITY.md", "benchmarks", "configs", "datamodules", "docs", "examples"),
    *("lightning_logs", "llp", "mkdocs.yml", "pyproject.toml", "requirements", "results", "tests"),
}
LONGEST = {".cff": 130, ".md": 130, ".sbatch": 130, ".toml": 130, ".yaml": 130}  # of .py files ruff takes care
GENERATED = ("results/", "benchmarks/results/", "tests/golden/")


def long_lines(path: Path) -> list[str]:
    """The lines of a file that are too long, outside of tables and fenced output."""
    longest, found, is_fenced = LONGEST.get(path.suffix, sys.maxsize), [], False
    if str(path).startswith(GENERATED) or longest == sys.maxsize:
        return found
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        is_fenced ^= path.suffix == ".md" and line.startswith("```")
        is_exempt = is_fenced or line.startswith("|") or "://" in line or "noqa" in line
        if len(line) > longest and not is_exempt:
            found.append(f"{path}:{number}: {len(line)} characters, of {longest} at most")
    return found


def main(files: list[str]) -> int:
    """Print what is wrong; returns the exit status."""
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    stray = sorted({Path(path).parts[0] for path in tracked} - AT_ROOT)
    found = [f"{name}: a stray file; if it belongs at the root, add it to AT_ROOT" for name in stray]
    found += [line for path in files for line in long_lines(Path(path))]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
