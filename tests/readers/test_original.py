"""The original requirements, written for Elixir: its example, and how modules get in, change and stay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryError, RegistryWriter, Requirements, UnknownModuleError
from tests.support.original import CORE, SUMMARISE
from tests.support.processes import child, requests, run, say


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


# Dynamic discovery


@pytest.mark.dspy
def test_discovery_from_the_installed_dspy(registry_folder: Path) -> None:
    from dspy_registry.writer.discovery.report import discover

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
    assert caught.value.remedy
