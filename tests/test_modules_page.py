"""docs/modules.md: its table of core modules, its weights and its figures are those of the code."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dspy_registry import ModuleInfo, Registry, Requirements
from dspy_registry.readers.routing import INPUT_SIZES, TIMEOUT_MARGIN, CostWeights
from dspy_registry.registry_store.vocabulary import CORE_IMPLICATIONS, LEVELS
from dspy_registry.writer.core_modules import CORE_MODULES
from tests.support import ROOT

PAGE = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
"""The page as one text."""


def table(first_heading: str) -> list[list[str]]:
    """The rows of the first table whose first column has this heading, without its heading."""
    lines = PAGE.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def declared(row: list[str]) -> ModuleInfo:
    """The module that a row of the page describes."""
    name, category, capabilities, memory, compute, gpu, pool, duration, native = row
    return ModuleInfo(
        name=name,
        category=category,
        capabilities=tuple(capabilities.split(", ")),
        requirements=Requirements(memory=memory, compute=compute, gpu=gpu == "yes"),
        pool_type=pool,
        estimated_duration=int(duration),
        native_available=native == "yes",
    )


def test_the_table_is_the_core_modules() -> None:
    assert tuple(declared(row) for row in table("name")) == CORE_MODULES


def test_each_core_module_has_an_explanation_and_an_example() -> None:
    for info in CORE_MODULES:
        assert f"- **`{info.name}`**" in PAGE
        assert f"\n{info.name}(" in PAGE


def test_the_levels_and_weights_are_the_real_ones() -> None:
    weights = msgspec.structs.asdict(CostWeights())
    rows = table("level")
    assert [row[0] for row in rows] == list(LEVELS)
    weighted = PAGE[PAGE.index("| level | weight |") :].splitlines()[2:6]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in weighted]
    assert {cell[0]: float(cell[1]) for cell in cells} == {level: weights[level] for level in LEVELS}
    assert f"GPU weight 1, a module with `gpu` has {weights['gpu']:g}" in PAGE


def test_the_pools_and_implications_are_those_of_core() -> None:
    assert {row[0] for row in table("pool")} == {info.pool_type for info in CORE_MODULES}
    for word, implied in CORE_IMPLICATIONS.items():
        assert all(f"`{word}` implies `{other}`" in PAGE for other in implied)


def test_the_formulas_are_the_real_ones() -> None:
    said = ", ".join(f"{factor:g} for `{size}`" for size, factor in INPUT_SIZES.items())
    assert f"duration × {said}" in PAGE
    assert f"duration × size factor × {TIMEOUT_MARGIN}" in PAGE


def test_the_figures_of_the_text_are_what_a_registry_answers(seeded_registry: Path) -> None:
    with Registry(seeded_registry) as registry:
        route = registry.routing_recommendation("dspy.ChainOfThought", input_size=5000)
        assert registry.estimate_duration("dspy.ChainOfThought", "large") == 6000
        assert route.timeout == 5400
        assert registry.routing_recommendation("dspy.ColBERTv2", input_size=5000).estimated_cost == pytest.approx(12)
    assert "about 6,000 ms" in PAGE
    assert "is 5,400 ms" in PAGE
