"""A hook of MkDocs: links to any file of the repository work on the site as they do in the plain files.

README.md is the first page. Other files outside of docs/ that a page links to are in the site's folder `repository/`:
Markdown and pictures as they are, other text as a page that shows it. The notebook becomes a page, too. A link to a
file that does not exist is left as it is, so that `mkdocs build --strict` fails.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)(?=[)#])")
LANGUAGES = {".cff": "yaml", ".py": "python", ".sbatch": "sh", ".toml": "toml", ".yaml": "yaml"}
PICTURES = {".png", ".svg"}
LAST_IN_SEARCH = "---\nsearch:\n  boost: 0.1\n---\n\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to, and what that links to."""
    files.append(File.generated(config, "first_look.md", content=notebook_page(ROOT / "docs/first_look.ipynb")))
    todo, seen = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())], set()
    while todo:
        path = todo.pop()
        if path in seen or not (ROOT / path).is_file():
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            files.append(generated(config, path))
        if path.endswith(".md"):
            todo += linked_from(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page from paths in the repository into paths in the site."""
    source = repository_path(page.file.src_uri)
    here = os.path.dirname(page.file.src_uri)

    def in_site(link: re.Match[str]) -> str:
        target = resolved(source, link.group(1))
        return os.path.relpath(site_path(target), here or ".") if (ROOT / target).is_file() else link.group()

    return LINK.sub(in_site, markdown)


def linked_from(path: str) -> Iterator[str]:
    """The repository's files that a Markdown file links to."""
    return (resolved(path, link) for link in LINK.findall((ROOT / path).read_text(encoding="utf-8")))


def resolved(source: str, link: str) -> str:
    """The path in the repository of what a file links to."""
    return os.path.normpath(os.path.join(os.path.dirname(source), link))


def site_path(path: str) -> str:
    """Where in the site a file of the repository is."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/") and not path.endswith(".py"):
        return path.removeprefix("docs/").replace(".ipynb", ".md")
    return f"repository/{path}" if Path(path).suffix in {".md", *PICTURES} else f"repository/{path}.md"


def repository_path(src_uri: str) -> str:
    """The file of the repository that a page of the site is made from."""
    if src_uri == "index.md":
        return "README.md"
    return src_uri.removeprefix("repository/") if src_uri.startswith("repository/") else f"docs/{src_uri}"


def generated(config: MkDocsConfig, path: str) -> File:
    """A file outside of docs/ as a file of the site."""
    suffix = Path(path).suffix
    if suffix in PICTURES:
        return File.generated(config, site_path(path), abs_src_path=str(ROOT / path))
    text = (ROOT / path).read_text(encoding="utf-8")
    if suffix != ".md":
        text = f"# `{path}`\n\n````{LANGUAGES.get(suffix, 'text')}\n{text}\n````\n"
    if path != "README.md":
        text = LAST_IN_SEARCH + text
    return File.generated(config, site_path(path), content=text)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown, with its outputs."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![](data:image/png;base64,{data['image/png'].strip()})")
            elif text := output.get("text") or data.get("text/plain"):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
