"""What the documentation shows is run; what the command line offers is documented."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import click
import pytest

from tests.support import ROOT

README = ROOT / "README.md"
PAGES = [page for page in (README, *sorted((ROOT / "docs").rglob("*.md"))) if page.is_file()]
PACKAGES = (
    "registry_store",
    "writer",
    "readers",
    *(f"dspy_registry/{part}" for part in ("cli", "demo", "explorer", "integrations", "router")),
)
MODULES = [
    path.relative_to(ROOT).with_suffix("")
    for package in (
        "registry_store",
        "writer",
        "readers",
        "dspy_registry/cli",
        "dspy_registry/demo",
        "dspy_registry/explorer",
        "dspy_registry/integrations",
        "dspy_registry/router",
    )
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
]
FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<ticks>`{3,}|~{3,})[ \t]*(?P<info>[^\n`]*)\n"
    r"(?P<code>.*?)^[ \t]*(?P=ticks)[`~]*[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
RUN, NO_RUN = "python", "python no-run"


class Block(NamedTuple):
    where: str
    info: str
    code: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        yield Block(f"{page.name}:{line}", fence["info"].strip(), textwrap.dedent(fence["code"]))


def as_parameters(found: list[Block]) -> list[object]:
    """The blocks to run; those that import dspy are left out where dspy is."""
    return [
        pytest.param(block, id=block.where, marks=[pytest.mark.dspy] * needs_dspy(block.code))
        for block in found
        if block.info == RUN
    ]


def needs_dspy(code: str) -> bool:
    return re.search(r"^\s*(import|from) dspy\b", code, re.MULTILINE) is not None


def run(block: Block, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=block.code,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=90,
    )


def looks_like_python(info: str) -> bool:
    return info.lower().startswith("py")


def failed_examples(module: ModuleType) -> str:
    """What the docstring examples of `module` print instead; "" when all are true."""
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=said.append)
    return "".join(said)


def commands(group: click.Group, above: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        yield f"{above}{name}"
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")


def undocumented(names: list[str], text: str) -> list[str]:
    return [name for name in names if not re.search(rf"(dspy-registry |`){re.escape(name)}(?![\w-])", text)]


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("block", as_parameters(ALL_BLOCKS))
def test_block_runs(block: Block, seeded_registry: Path, tmp_path: Path) -> None:
    assert os.environ["DSPY_REGISTRY"] == str(seeded_registry)
    done = run(block, tmp_path)
    assert done.returncode == 0, f"{block.where}\n{block.code}\n{done.stdout}{done.stderr}"


def modules_as_parameters() -> list[object]:
    """The modules to look through; those that import dspy are left out where dspy is."""
    return [
        pytest.param(
            path, id=str(path), marks=[pytest.mark.dspy] * needs_dspy((ROOT / path).with_suffix(".py").read_text())
        )
        for path in MODULES
    ]


@pytest.mark.parametrize("module", modules_as_parameters())
def test_docstring_examples_are_true(
    module: Path, seeded_registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = module.parts if module.parts[0] == "dspy_registry" else ("dspy_registry", *module.parts)
    try:
        found = importlib.import_module(".".join(parts))
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "dspy_registry":
            raise
        pytest.skip(f"it needs {error.name}, which is not installed")
    assert failed_examples(found) == ""


def test_the_readme_shows_python_that_runs() -> None:
    assert README.is_file()
    assert [block for block in blocks(README) if block.info == RUN]


def test_the_package_carries_the_readme() -> None:
    assert '\nreadme = "README.md"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_no_python_block_escapes() -> None:
    spelled = {block.info for block in ALL_BLOCKS if looks_like_python(block.info)}
    assert spelled <= {RUN, NO_RUN}


def test_every_command_is_documented() -> None:
    from dspy_registry.cli.program import main

    names = list(commands(main))
    assert {"serve", "get", "check"} <= set(names)
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert undocumented(names, text) == []


def test_blocks_are_found_and_a_failing_one_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nprint(1)\n```\n\n- item\n\n  ```python\n  raise SystemExit(3)\n  ```\n\n"
        "```python no-run\nnonsense(\n```\n\n```console\n$ true\n```\n\n````py\n```\n````\n"
    )
    first, second, *others = blocks(page)
    assert (first.where, run(first, tmp_path).stdout) == ("page.md:1", "1\n")
    assert (second.where, run(second, tmp_path).returncode) == ("page.md:7", 3)
    assert [block.info for block in others] == ["python no-run", "console", "py"]


def test_a_warning_fails_a_block(tmp_path: Path) -> None:
    warns = Block("here", RUN, "import warnings; warnings.warn('old')")
    assert run(warns, tmp_path).returncode == 1


def test_a_false_docstring_example_is_told() -> None:
    assert failed_examples(ModuleType("right", ">>> 1 + 1\n2\n")) == ""
    assert "Expected:" in failed_examples(ModuleType("wrong", ">>> 1 + 1\n3\n"))


def test_an_undocumented_command_is_told() -> None:
    text = "Run `dspy-registry get NAME`, or `stats`; not `rollback-all`."
    assert undocumented(["get", "stats", "rollback", "usage show"], text) == [
        "rollback",
        "usage show",
    ]


def test_commands_of_a_group_are_listed_too() -> None:
    usage = click.Group("usage", commands=[click.Command("show")])
    main = click.Group("main", commands=[click.Command("get"), usage])
    assert list(commands(main)) == ["get", "usage", "usage show"]
