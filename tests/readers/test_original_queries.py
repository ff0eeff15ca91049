"""The original requirements, written for Elixir: what can be asked, and what a router is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    CostWeights,
    InvalidArgumentError,
    ModuleInfo,
    Recommendation,
    Registry,
    RegistryWriter,
    UnknownModuleError,
)
from tests.support.original import CORE, SUMMARISE

# Queries


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ("reasoning", ("dspy.ChainOfThought", "dspy.ReAct", "dspy.ProgramOfThought")),
        ("complex_reasoning", ("dspy.ProgramOfThought",)),
        ("tool_use", ("dspy.ReAct",)),
        ("embeddings", ("dspy.ColBERTv2",)),
        ("unheard_of", ()),
        ("", ()),
    ],
)
def test_queries_by_capability(seeded_registry: Path, capability: str, names: tuple[str, ...]) -> None:
    with Registry(seeded_registry) as registry, registry.snapshot() as snapshot:
        assert registry.find_by_capability(capability) == registry.find_by_capability(capability) == names
        assert registry.find(capabilities=capability) == (names if capability else ())
        assert snapshot.find_by_capability(capability) == names


@pytest.mark.parametrize(
    ("category", "names"),
    [
        ("prediction", ("dspy.Predict",)),
        ("reasoning", ("dspy.ChainOfThought", "dspy.ReAct", "dspy.ProgramOfThought")),
        ("optimization", ("dspy.MIPROv2",)),
        ("retrieval", ("dspy.ColBERTv2",)),
        ("unknown", ()),
    ],
)
def test_category_filtering(seeded_registry: Path, category: str, names: tuple[str, ...]) -> None:
    with Registry(seeded_registry) as registry, registry.snapshot() as snapshot:
        assert registry.find_by_category(category) == registry.find(category=category) == names
        assert snapshot.find_by_category(category) == names


def test_queries_by_name(seeded_registry: Path) -> None:
    with Registry(seeded_registry) as registry:
        for asked in ("dspy.Predict", "Predict", "predict"):
            assert registry.get_module(asked).name == "dspy.Predict"
        with pytest.raises(UnknownModuleError) as caught:
            registry.get_module("dspy.Predictt")
        assert isinstance(caught.value, KeyError)
        assert caught.value.closest[0] == "dspy.Predict"
        assert registry.get("dspy.Missing") is None
        assert registry.get("dspy.Missing", 1) == 1


# Pool recommendations, native availability


@pytest.mark.parametrize("row", CORE, ids=lambda row: row[0])
def test_pools_and_native_implementations(seeded_registry: Path, row: tuple[Any, ...]) -> None:
    with Registry(seeded_registry) as registry, registry.snapshot() as snapshot:
        for queries in (registry, registry, snapshot):
            assert queries.get_pool_type(row[0]) == row[4][0]
            assert queries.has_native(row[0]) is row[4][2]
        assert registry.find(pool_type="optimizer") == ("dspy.ProgramOfThought", "dspy.MIPROv2")
        assert registry.find(native=True) == ("dspy.Predict",)


MISSING: list[Callable[[Any], object]] = [
    lambda queries: queries.get_module("dspy.Missing"),
    lambda queries: queries["dspy.Missing"],
    lambda queries: queries.get_pool_type("dspy.Missing"),
    lambda queries: queries.estimate_duration("dspy.Missing"),
    lambda queries: queries.routing_recommendation("dspy.Missing", input_size=10),
    lambda queries: queries.describe("dspy.Missing"),
]


@pytest.mark.parametrize("ask", MISSING)
def test_a_missing_module_is_an_error_but_has_no_native_implementation(seeded_registry: Path, ask: Any) -> None:
    with Registry(seeded_registry) as registry, registry.snapshot() as snapshot:
        for queries in (registry, snapshot):
            assert queries.has_native("dspy.Missing") is False
            with pytest.raises(UnknownModuleError):
                ask(queries)


# Duration estimates


@pytest.mark.parametrize(
    ("size", "expected"), [("small", 1500), ("normal", 3000), ("large", 6000), ("very_large", 15_000)]
)
def test_durations(seeded_registry: Path, size: str, expected: int) -> None:
    with Registry(seeded_registry) as registry, registry.snapshot() as snapshot:
        for queries in (registry, registry, snapshot):
            assert queries.estimate_duration("dspy.ChainOfThought", size) == expected
            assert queries.estimate_duration("dspy.ChainOfThought") == 3000


@pytest.mark.parametrize(("base", "half"), [(0, 0), (1, 1), (3, 2), (5, 3), (7, 4), (2_592_000_000 - 1, 1_296_000_000)])
def test_durations_are_rounded_half_away_from_zero(registry_folder: Path, base: int, half: int) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(ModuleInfo("a.B", estimated_duration=base))
        assert [registry.estimate_duration("a.B", "small") for _ in range(3)] == [half] * 3


def test_another_size_is_an_error(seeded_registry: Path) -> None:
    with Registry(seeded_registry) as registry:
        for _ in range(3):
            with pytest.raises(InvalidArgumentError, match="'huge'"):
                registry.estimate_duration("dspy.Predict", "huge")
    assert issubclass(InvalidArgumentError, ValueError)


# Integration helpers for the router


@pytest.mark.parametrize(
    ("input_size", "timeout"),
    [(None, 600), (0, 600), (1000, 600), (1001, 900), (5000, 900), (10_000, 900), (10_001, 1800), (10**9, 1800)],
)
def test_timeouts(seeded_registry: Path, input_size: int | None, timeout: int) -> None:
    with Registry(seeded_registry) as registry, registry.snapshot() as snapshot:
        for queries in (registry, registry, snapshot):
            assert queries.routing_recommendation("dspy.ColBERTv2", input_size=input_size).timeout == timeout


@pytest.mark.parametrize(
    ("name", "optimize", "native"),
    [
        ("dspy.Predict", True, True),
        ("dspy.Predict", False, False),
        ("dspy.Predict", None, False),
        ("dspy.ReAct", True, False),
    ],
)
def test_native_is_preferred_where_there_is_one_and_latency_counts(
    seeded_registry: Path, name: str, optimize: bool | None, native: bool
) -> None:
    context = {} if optimize is None else {"optimize_latency": optimize}
    with Registry(seeded_registry) as registry:
        assert registry.routing_recommendation(name, **context).prefer_native is native


def test_costs_are_compute_seconds(seeded_registry: Path) -> None:
    with Registry(seeded_registry) as registry:
        costs = {row[0]: registry.routing_recommendation(row[0]).estimated_cost for row in CORE}
        assert costs == {
            "dspy.Predict": 1.0,  # low 1 x 1 s
            "dspy.ChainOfThought": 6.0,  # medium 2 x 3 s
            "dspy.ReAct": 10.0,
            "dspy.ProgramOfThought": 40.0,  # high 4 x 10 s
            "dspy.MIPROv2": 2400.0,  # very_high 8 x 300 s
            "dspy.ColBERTv2": 8.0,  # high 4 x gpu 4 x 0.5 s
        }
        assert registry.routing_recommendation("dspy.ColBERTv2", input_size=5000).estimated_cost == 12.0
    with Registry(seeded_registry, cost_weights=CostWeights(high=3.0, gpu=2.0)) as registry:
        assert registry.routing_recommendation("dspy.ColBERTv2").estimated_cost == 3.0


def test_a_declared_price_is_told_beside_the_compute_cost(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(SUMMARISE)
        expected = Recommendation("general", 1440, True, 2.4, declared_cost_usd=0.002)
        assert registry.routing_recommendation("Summarise", optimize_latency=True) == expected
