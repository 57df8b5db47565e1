"""Paths that the documents name exist, so that a file that moves takes its mentions with it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# A path may start at one of these; `unit/ops/test_x.py` is short for `tests/unit/ops/test_x.py`.
STARTS = (
    "",
    "megadeberta",
    "megadeberta/ops/attention",
    "megadeberta/convert",
    "tests",
    "docs",
    "data_prep",
    "launcher",
)
# Files of other projects, and of the reader's own.
FOREIGN = {
    "mlm_task.py",
    "rtd_task.py",
    "bert.py",
    "runtime/engine.py",
    "runtime/utils.py",
    "shuffled.py",
    "results.md",
}
NAME = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*/?")


def _paths(text: str) -> set[str]:
    """What stands in backticks and looks like a source file, a document, or a path from a folder of the repository."""
    tokens = {token for token in re.findall(r"`([^`\n]+)`", text) if NAME.fullmatch(token)}
    made = re.findall(r"^/(\w+)/$", (ROOT / ".gitignore").read_text(encoding="utf-8"), re.MULTILINE)  # by `make run`
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {*made}
    return {
        token
        for token in tokens - FOREIGN
        if re.search(r"\.(py|md|toml)$", token) or ("/" in token and token.split("/")[0] in folders)
    }


def _exists(path: str) -> bool:
    if any((ROOT / start / path).exists() for start in STARTS):
        return True
    return "/" not in path and path in _names()


def _names() -> set[str]:
    """Of all files: a bare name such as `apply.py` stands for the one that the text just spoke of."""
    folders = ("megadeberta", "launcher", "data_prep", "tests", "docs", "benchmarks", "tools")
    return {path.name for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert sorted(path for path in _paths(text) if not _exists(path)) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_into_a_page_has_its_heading(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    assert [link for link in re.findall(r"\]\(#([^)]+)\)", text) if link not in headings] == []


def test_the_tree_of_the_readme_has_every_package() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("megadeberta/         the library")[1].split("```")[0]
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines() if re.match(r"    \S", line)}
    folders = {path.name for path in (ROOT / "megadeberta").iterdir() if path.is_dir() and not path.is_symlink()}
    assert folders - {"__pycache__"} == listed
