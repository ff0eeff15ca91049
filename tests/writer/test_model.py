"""Everything that can be done to a registry, in any order, beside a model of it.

After each step every reader must answer as the model does: a fresh one, one that has been caching since the beginning
in very little room, and snapshots as the model was when they were taken. The check must find nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from dspy_registry import (
    ConflictError,
    InvalidArgumentError,
    InvalidModuleError,
    ModuleInfo,
    Registry,
    RegistryWriter,
    Snapshot,
    UnknownModuleError,
    VocabularyError,
)
from dspy_registry.registry_store.layers import Layer
from dspy_registry.registry_store.records import to_plain
from dspy_registry.writer.core_modules import CORE_MODULES
from tests.conftest import violations
from tests.support.registry_model import (
    ALIASES,
    ASKED,
    CORE_WORDS,
    SOURCES,
    WORDS,
    Model,
    agree,
    fields,
    filters,
    has_cycle,
    infos,
    names,
    words,
)


class RegistryMachine(RuleBasedStateMachine):
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.folder = Path(self.directory.name) / "registry"
        self.writer = RegistryWriter(self.folder)
        self.cached = Registry(self.folder, cache_size=4)
        self.open: list[Snapshot] = []

    def teardown(self) -> None:
        for snapshot in self.open:
            snapshot.close()
        self.cached.close()
        self.writer.close()
        self.directory.cleanup()

    @initialize()
    def begin(self) -> None:
        self.model = Model()
        for info in CORE_MODULES:
            plain = {key: value for key, value in to_plain(info).items() if key not in ("name", "examples", "metadata")}
            self.model = self.model.layered(info.name, {"core": plain})

    def change(self, model: Model, *arguments: Any) -> None:
        """Commit and follow. What changes nothing that can be read makes no revision."""
        before = self.writer.revision
        method, *given = arguments
        revision = method(*given)
        is_seen = (
            model.modules != self.model.modules
            or list(model.modules) != list(self.model.modules)
            or model.versions != self.model.versions
            or model.aliases != self.model.aliases
            or any(
                model.expanded(info.capabilities) != self.model.expanded(info.capabilities)
                for info in self.model.modules.values()
            )
        )
        assert revision == self.writer.revision == before + is_seen
        self.model = model

    def stage(self, *calls: tuple[Any, ...]) -> int:
        """Several requests in one commit, each on a draft of its own, as the daemon makes them."""

        def staged(draft: Any) -> None:
            for method, *given in calls:
                child = draft.child()
                getattr(child, method)(*given)
                draft.absorb(child)

        return self.writer.store.committer.commit(staged)

    # What a client does

    @rule(info=infos)
    def register(self, info: ModuleInfo) -> None:
        self.change(self.model.put(info, "client"), self.writer.register_module, info)

    @rule(batch=st.lists(infos, max_size=5))
    def register_batch(self, batch: list[ModuleInfo]) -> None:
        model = self.model
        for info in batch:
            model = model.put(info, "client")
        self.change(model, self.writer.register_modules, batch)

    @rule(batch=st.lists(infos, max_size=3), bad=st.sampled_from(("category", "estimated_duration")))
    def register_bad_batch(self, batch: list[ModuleInfo], bad: str) -> None:
        with pytest.raises(InvalidModuleError):
            self.writer.register_modules([*batch, ModuleInfo("dspy.Aa", **{bad: None})])

    @rule(info=infos, off=st.integers(-1, 1))
    def register_if_version(self, info: ModuleInfo, off: int) -> None:
        standing = self.model.versions.get(info.name, 0) if info.name in self.model.modules else 0
        if off:
            with pytest.raises(ConflictError if standing + off >= 0 else InvalidArgumentError):
                self.writer.register_module(info, expected_version=standing + off)
        else:
            model = self.model.put(info, "client")
            self.change(model, lambda: self.writer.register_module(info, expected_version=standing))

    @rule(name=names)
    def unregister(self, name: str) -> None:
        if name in self.model.modules:
            self.change(self.model.without(name), self.writer.unregister_module, name)
        else:
            with pytest.raises(UnknownModuleError):
                self.writer.unregister_module(name)

    @rule(info=infos, also=infos)
    def there_and_back(self, info: ModuleInfo, also: ModuleInfo) -> None:
        """Unregistered and registered again in one commit, among others: last in the order."""
        if info.name in self.model.modules and also.name != info.name:
            model = self.model.put(also, "client").without(info.name).put(info, "client")
            calls = (("register", also), ("unregister", info.name), ("register", info))
            self.change(model, self.stage, *calls)

    @rule(alias=st.sampled_from(ALIASES), name=names)
    def set_alias(self, alias: str, name: str) -> None:
        if alias in self.model.modules:  # it would never be asked: the full name comes first
            with pytest.raises(InvalidModuleError):
                self.writer.set_alias(alias, name)
        elif name in self.model.modules:
            model = replace(self.model, aliases={**self.model.aliases, alias: name})
            self.change(model, self.writer.set_alias, alias, name)
        else:
            with pytest.raises(UnknownModuleError):
                self.writer.set_alias(alias, name)

    @rule(alias=st.sampled_from(ALIASES))
    def remove_alias(self, alias: str) -> None:
        if alias in self.model.aliases:
            aliases = {key: name for key, name in self.model.aliases.items() if key != alias}
            self.change(replace(self.model, aliases=aliases), self.writer.remove_alias, alias)
        else:
            with pytest.raises(UnknownModuleError):
                self.writer.remove_alias(alias)

    @rule(implications=st.dictionaries(st.sampled_from(WORDS), words, max_size=3))
    def set_implications(self, implications: dict[str, tuple[str, ...]]) -> None:
        implied = {word: (*CORE_WORDS.get(word, ()), *implications.get(word, ())) for word in WORDS}
        if has_cycle(implied):
            with pytest.raises(VocabularyError):
                self.writer.set_implications(implications)
        else:
            self.change(replace(self.model, implied=implied), self.writer.set_implications, implications)

    # What other sources do

    @rule(name=names, source=st.sampled_from(SOURCES), declared=fields)
    def declare(self, name: str, source: str, declared: dict[str, Any]) -> None:
        layers = {**self.model.layers.get(name, {}), source: declared}
        self.change(self.model.layered(name, layers), self.stage, ("declare", name, Layer(source, declared)))

    @rule(name=names, source=st.sampled_from(SOURCES))
    def withdraw(self, name: str, source: str) -> None:
        layers = dict(self.model.layers.get(name, {}))
        model = self.model
        if layers.pop(source, None) is not None:
            model = self.model.layered(name, layers)
        self.change(model, self.stage, ("withdraw", name, source))

    # What readers do

    @rule()
    def restart_the_writer(self) -> None:
        revision = self.writer.revision
        self.writer.close()
        self.writer = RegistryWriter(self.folder)
        assert self.writer.revision == revision

    @rule(size=st.sampled_from((1, 3, 8192)))
    def reopen_the_cached_reader(self, size: int) -> None:
        self.cached.close()
        self.cached = Registry(self.folder, cache_size=size)

    @rule(conditions=filters)
    def find(self, conditions: dict[str, Any]) -> None:
        for _ in range(3):
            assert self.cached.find(**conditions) == self.model.find(conditions)

    @rule(name=st.sampled_from(ASKED))
    def read_often(self, name: str) -> None:
        expected = self.model.resolve(name)
        for _ in range(3):
            if isinstance(expected, str):
                assert self.cached.get_module(name).name == expected
            else:
                with pytest.raises(expected):
                    self.cached.get_module(name)

    @rule(target=snapshots)
    def take_a_snapshot(self) -> Any:
        if len(self.open) >= 3:
            return multiple()
        snapshot = self.cached.snapshot()
        self.open.append(snapshot)
        return snapshot, self.model, self.writer.revision

    @rule(taken=snapshots, conditions=filters)
    def look_at_a_snapshot(self, taken: tuple[Snapshot, Model, int], conditions: dict[str, Any]) -> None:
        snapshot, model, revision = taken
        assert snapshot.revision == revision
        agree(snapshot, model)
        assert snapshot.find(**conditions) == model.find(conditions)

    @rule(taken=consumes(snapshots))
    def close_a_snapshot(self, taken: tuple[Snapshot, Model, int]) -> None:
        agree(taken[0], taken[1])
        taken[0].close()
        self.open = [snapshot for snapshot in self.open if snapshot is not taken[0]]

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        agree(self.cached, self.model)
        assert self.cached.revision == self.writer.revision
        with Registry(self.folder) as fresh:
            agree(fresh, self.model)
            for name in self.model.modules:
                kept = fresh.describe(name).provenance
                assert (kept.version, kept.source) == (self.model.versions[name], self.model.sources[name])
        assert violations(self.folder) == []


RegistryMachine.TestCase.settings = settings(
    max_examples=8, stateful_step_count=25, suppress_health_check=list(HealthCheck)
)


class TestRegistry(RegistryMachine.TestCase):  # type: ignore[misc, name-defined]
    """Runs with `make test`."""


@pytest.mark.full
class TestRegistryInFull(RegistryMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=60, stateful_step_count=25, suppress_health_check=list(HealthCheck))


@pytest.mark.stress
class TestRegistryAtLength(RegistryMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=400, stateful_step_count=60, suppress_health_check=list(HealthCheck))
