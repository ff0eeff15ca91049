"""The files and functions that the pages for contributors name exist, and so do the pages that any page links to.

A file is written `folder/name.py` from the top of the repository; a function or method is written `name()` or
`Class.name()`. A function has to be in one of the files named beside it, in the same row of a table, list item or
paragraph. Where no file is named there, it may be anywhere in the source.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

PAGES = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/README.md"))
ALL_PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
SOURCES = (
    "registry_store",
    "writer",
    "readers",
    "dspy_registry/cli",
    "dspy_registry/demo",
    "dspy_registry/explorer",
    "dspy_registry/integrations",
)
FENCE = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.py)`")
FOLDER = re.compile(r"`((?:registry_store|writer|readers|dspy_registry|tests|benchmarks|docs)(?:/\w+)*)`")
FUNCTION = re.compile(r"`((?:[A-Za-z_]\w*\.)?[a-z_]\w*)\(\)`")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([\w.-]+))?\)")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def passages(text: str) -> Iterator[str]:
    """Paragraphs, list items and rows of tables."""
    yield from re.split(r"\n\s*\n|\n(?=\s*(?:[-*|]|\d+\.)\s)|\n(?=\|)", text)


@cache
def defined(path: Path) -> frozenset[str]:
    """The functions of a file, and the methods of its classes as `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name, body=body):
                found |= {f"{name}.{method}" for method in functions(body)}
    return frozenset(found)


def functions(body: list[ast.stmt]) -> list[str]:
    return [node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@cache
def all_methods() -> frozenset[str]:
    """Every function and method of the source, without its class: it may be inherited."""
    paths = (path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))
    return frozenset(name.rpartition(".")[2] for path in paths for name in defined(path))


def missing(text: str) -> list[str]:
    """What a page names and does not exist."""
    return [
        *(file for file in FILE.findall(text) if "/" in file and not (ROOT / file).is_file()),
        *(folder for folder in FOLDER.findall(text) if not (ROOT / folder).exists()),
        *(name for passage in passages(text) for name in missing_functions(passage)),
    ]


def missing_functions(passage: str) -> list[str]:
    files = [ROOT / file for file in FILE.findall(passage) if (ROOT / file).is_file()]
    here = frozenset(name for file in files for name in defined(file))
    named = FUNCTION.findall(passage)
    if files:
        return [name for name in named if name not in here]
    return [name for name in named if name.rpartition(".")[2] not in all_methods()]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as its host makes them."""
    headings = re.findall(r"^#{1,6} (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    found = []
    for target, anchor in LINK.findall(prose(page)):
        if ":" in target:
            continue
        linked = (page.parent / target).resolve() if target else page
        if not linked.exists() or (anchor and linked.suffix == ".md" and anchor not in anchors(linked)):
            found.append(f"{target}#{anchor}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    assert missing(prose(page)) == []


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    others = {page.name for page in index.parent.glob("*.md")} - {index.name}
    assert sorted(page for page in others if f"({page})" not in prose(index)) == []


def test_a_missing_name_is_told() -> None:
    there = "`writer/recovery.py`: `recover_word()`"
    assert missing(there) == []
    assert missing(there.replace("recovery.py", "recoverys.py")) == ["writer/recoverys.py"]
    assert missing(there.replace("recover_word", "recovered")) == ["recovered"]
    assert missing("`writer/apply.py`: `apply()`.\n\n`Committer.commit()`") == []
    assert missing("- `writer/apply.py`: `apply()`\n- `writer/draft.py`: `apply()`") == ["apply"]
    assert missing("`writer/nowhere`, `Registry.get_nothing()`") == ["writer/nowhere", "Registry.get_nothing"]


def test_a_broken_link_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One word, two\n[a](#one-word-two) [b](#three) [c](gone.md) [d](page.md#one-word-two)\n")
    assert broken_links(page) == ["#three", "gone.md#"]
