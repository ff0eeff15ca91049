"""The original requirements, written for Elixir: its example, its acceptance criteria, its test scenarios."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import child, requests, run, say

from readers import CostWeights, Recommendation, Registry
from registry_store import InvalidArgumentError, ModuleInfo, Requirements, UnknownModuleError
from registry_store.errors import RegistryError
from writer import RegistryWriter

SUMMARISE = ModuleInfo(
    name="acme.Summarise",
    category="prediction",
    capabilities=("summarisation", "reasoning"),
    requirements=Requirements(memory="low", compute="medium", gpu=False, extra={"vram_gb": 0}),
    pool_type="general",
    estimated_duration=1200,
    native_available=True,
    examples=("Summarise()(text='…')",),
    metadata={"owner": "acme", "cost_usd_per_call": 0.002},
)

MEDIUM, HIGH = ("medium", "medium", False), ("high", "high", False)
CORE: list[tuple[Any, ...]] = [  # needs: memory, compute, gpu; runs: pool, milliseconds, native
    (
        "dspy.Predict",
        "prediction",
        "basic_generation structured_output",
        ("low", "low", False),
        ("general", 1000, True),
    ),
    ("dspy.ChainOfThought", "reasoning", "reasoning step_by_step explanation", MEDIUM, ("general", 3000, False)),
    ("dspy.ReAct", "reasoning", "reasoning tool_use iterative", MEDIUM, ("general", 5000, False)),
    ("dspy.ProgramOfThought", "reasoning", "complex_reasoning code_generation", HIGH, ("optimizer", 10_000, False)),
    (
        *("dspy.MIPROv2", "optimization", "hyperparameter_optimization prompt_optimization"),
        *(("high", "very_high", False), ("optimizer", 300_000, False)),
    ),
    ("dspy.ColBERTv2", "retrieval", "semantic_search embeddings", ("high", "high", True), ("neural", 500, False)),
]


def test_the_example_of_the_original(seeded_registry: Path) -> None:
    registry = Registry(seeded_registry)
    module = registry.get_module("dspy.ChainOfThought")
    assert module.capabilities == ("reasoning", "step_by_step", "explanation")
    reasoning_modules = registry.find_by_capability("reasoning")
    assert reasoning_modules == ("dspy.ChainOfThought", "dspy.ReAct", "dspy.ProgramOfThought")
    assert registry.get_pool_type("dspy.MIPROv2") == "optimizer"
    assert registry.estimate_duration("dspy.ChainOfThought", "large") == 6000
    recommendation = registry.routing_recommendation("dspy.ColBERTv2", input_size=5000, optimize_latency=False)
    assert recommendation.pool_type == "neural"
    assert recommendation.timeout == 900
    assert recommendation.prefer_native is False
    registry.close()


# Registry initialized with core DSPy modules


@pytest.mark.parametrize("row", CORE, ids=lambda row: row[0])
def test_core_modules_are_there_from_the_first_opening(seeded_registry: Path, row: tuple[Any, ...]) -> None:
    name, category, capabilities, needs, runs = row
    with Registry() as registry:  # $DSPY_REGISTRY
        expected = ModuleInfo(name, category, tuple(capabilities.split()), Requirements(*needs), *runs)
        assert registry.get_module(name) == registry[name] == expected
        assert registry.describe(name).provenance.source == "core"


def test_core_modules_come_in_their_order_and_only_once(registry_folder: Path) -> None:
    for _ in range(3):
        with RegistryWriter(registry_folder), Registry(registry_folder) as registry:
            assert list(registry) == [row[0] for row in CORE]
            assert len(registry) == 6
            assert registry.describe("dspy.ReAct").provenance.version == 1


def test_core_modules_that_were_removed_or_changed_stay_so(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        for row in CORE:
            writer.unregister_module(row[0])
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        assert list(registry) == []
        writer.register_module(ModuleInfo("dspy.Predict", category="mine"))
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry:
        assert list(registry) == ["dspy.Predict"]
        assert registry["dspy.Predict"].category == "mine"


# Module registration and updates


def test_registration_and_retrieval(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        assert registry.get("acme.Summarise") is None
        revision = writer.register_module(SUMMARISE)
        assert registry.revision == writer.revision == revision
        assert registry["acme.Summarise"] == SUMMARISE
        assert registry.get_module("summarise") == SUMMARISE
        described = registry.describe("acme.Summarise")
        assert described.info == SUMMARISE
        kept = described.provenance
        assert (kept.version, kept.revision, kept.source) == (1, revision, "client")
        assert abs(kept.updated_at - registry.committed_at) == 0


def test_an_update_replaces_the_record_and_counts_versions(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(SUMMARISE)
        for version in range(2, 6):
            info = ModuleInfo("acme.Summarise", category=f"c{version}", capabilities=(f"only_{version}",))
            revision = writer.register_module(info)
            assert registry["acme.Summarise"] == info
            kept = registry.describe("acme.Summarise").provenance
            assert (kept.version, kept.revision) == (version, revision)
            assert registry.find_by_category(f"c{version}") == ("acme.Summarise",)
            assert registry.find_by_category(f"c{version - 1}") == ()
            assert registry.find_by_capability(f"only_{version - 1}") == ()


def test_registering_the_same_again_is_no_new_version(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        revision = writer.register_module(SUMMARISE)
        assert writer.register_module(SUMMARISE) == revision
        assert registry.describe("acme.Summarise").provenance.version == 1


def test_unregistering_removes_a_module_from_everything(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(SUMMARISE)
        writer.set_alias("summary", "acme.Summarise")
        assert registry.find_by_capability("reasoning")[-1] == "acme.Summarise"
        writer.unregister_module("acme.Summarise")
        for asked in ("acme.Summarise", "Summarise", "summarise", "summary"):
            with pytest.raises(UnknownModuleError):
                registry.get_module(asked)
        assert "acme.Summarise" not in registry
        assert "acme.Summarise" not in list(registry)
        assert "acme.Summarise" not in registry.find_by_capability("reasoning")
        with pytest.raises(UnknownModuleError):
            writer.unregister_module("acme.Summarise")
        assert writer.register_module(SUMMARISE) == registry.revision
        assert registry.describe("acme.Summarise").provenance.version == 2  # versions go on


def test_a_batch_is_one_revision(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        before = registry.revision
        assert writer.register_modules([ModuleInfo(f"a.M{i}") for i in range(100)]) == before + 1 == registry.revision
        assert list(registry)[6:] == [f"a.M{i}" for i in range(100)]


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
        with pytest.raises(UnknownModuleError, match=r"Did you mean dspy\.Predict") as caught:
            registry.get_module("dspy.Predictt")
        assert isinstance(caught.value, KeyError)
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


def test_another_size_is_an_error_that_lists_the_four(seeded_registry: Path) -> None:
    with Registry(seeded_registry) as registry:
        for _ in range(3):
            with pytest.raises(InvalidArgumentError, match="'huge' is not one of small, normal, large, very_large"):
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


# Dynamic discovery


@pytest.mark.dspy
def test_discovery_from_the_installed_dspy(registry_folder: Path) -> None:
    from writer.discovery import discover

    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(ModuleInfo("dspy.Refine", category="mine", estimated_duration=7))
        before = {row[0]: registry[row[0]] for row in CORE}
        report = discover(timeout=60)
        outcome = writer.apply_discovery(report)
        assert registry.revision == outcome.revision
        for name, core in before.items():  # what core declares stays; discovery adds what core leaves out
            now = registry[name]
            assert (now.category, now.capabilities, now.pool_type) == (core.category, core.capabilities, core.pool_type)
            assert (now.estimated_duration, now.native_available) == (core.estimated_duration, core.native_available)
        assert registry["dspy.Refine"] == ModuleInfo("dspy.Refine", category="mine", estimated_duration=7)
        discovered = [name for name in registry if registry.describe(name).provenance.source == "discovered"]
        assert "dspy.BestOfN" in discovered
        assert all(registry[name].estimated_duration > 0 for name in discovered)
        assert not any(registry[name].native_available for name in discovered)
        assert writer.apply_discovery(report).revision == outcome.revision  # nothing new


# Concurrent access


def read_until_told(folder: str) -> None:
    """A child that reads all the time; prints what it saw when told to stop."""
    with Registry(folder) as registry:
        seen = []
        for message in requests():
            if message == "stop":
                break
            seen.append(registry["acme.Summarise"].estimated_duration)
            say(seen[-1])


def test_processes_see_every_change_at_once(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        writer.register_module(SUMMARISE)
        with (
            child(__name__, "read_until_told", registry_folder) as one,
            child(__name__, "read_until_told", registry_folder) as two,
        ):
            for duration in range(50):
                writer.register_module(ModuleInfo("acme.Summarise", estimated_duration=duration))
                assert one.ask("read") == two.ask("read") == duration


def test_threads_read_and_write_at_once(registry_folder: Path) -> None:
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def attempt() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        return attempt

    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:

        def write(who: int) -> None:
            for i in range(25):
                revision = writer.register_module(ModuleInfo(f"t{who}.M{i}", capabilities=("threaded",)))
                assert registry.revision >= revision
                assert f"t{who}.M{i}" in registry

        def read() -> None:
            last = 0
            for _ in range(300):
                names = registry.find_by_capability("threaded")
                assert len(names) >= last
                last = len(names)
                assert registry.get_module("predict").name == "dspy.Predict"

        works = [lambda who=who: write(who) for who in range(4)] + [read] * 4
        threads = [threading.Thread(target=guarded(work)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(registry.find_by_capability("threaded")) == 100


# Persistence


def write_and_leave(folder: str) -> None:
    with RegistryWriter(folder) as writer:
        writer.register_module(SUMMARISE)
        writer.set_alias("summary", "acme.Summarise")
        writer.set_implications({"summarisation": ("generation",)})
        say(writer.unregister_module("dspy.ColBERTv2"))


def test_everything_is_there_after_a_restart(registry_folder: Path) -> None:
    (revision,) = run(__name__, "write_and_leave", registry_folder)
    for _ in range(2):
        with Registry(registry_folder) as registry:
            assert registry.revision == revision
            assert registry["acme.Summarise"] == SUMMARISE
            assert registry.get_module("summary") == SUMMARISE
            assert registry.find_by_capability("generation") == ("acme.Summarise",)
            assert list(registry) == [row[0] for row in CORE[:-1]] + ["acme.Summarise"]
        with RegistryWriter(registry_folder) as writer:
            assert writer.revision == revision


def test_an_error_of_ours_is_always_a_registry_error(tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as caught:
        Registry(tmp_path / "missing")
    assert isinstance(caught.value, FileNotFoundError)
    assert "Start its writer first" in str(caught.value)
