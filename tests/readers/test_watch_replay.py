"""Every watcher's replay equals the registry: writers die and come back, files are replaced, the log is short."""

from __future__ import annotations

import random
import threading
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ChangeWithRecords, ModuleInfo, Registry, RegistryWriter, Snapshot
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.backup import backup
from dspy_registry.writer import commit
from dspy_registry.writer.failpoints import NAMES as FAILPOINTS
from dspy_registry.writer.restore import restore
from tests.support.processes import child, run, say

NAMES = ("acme.A", "acme.B", "other.C")
PATIENCE = 60
State = dict[str, Any]


# The writer's side


def write(folder: str, seed: int, commits: int, kept: int) -> None:
    """Any changes. The log keeps `kept` of them."""
    layout.CHANGES_KEPT = kept  # type: ignore[misc]
    commit._DROPPED_AT_ONCE = 1  # type: ignore[misc]
    chance = random.Random(seed)
    with RegistryWriter(folder) as writer:
        for _ in range(commits):
            change_something(writer, chance)
            say(writer.revision)


def change_something(writer: RegistryWriter, chance: random.Random) -> None:
    with Registry(writer.store.folder) as registry:
        name = chance.choice(NAMES)
        if name not in registry or chance.random() < 0.5:
            writer.register_module(ModuleInfo(name, estimated_duration=chance.randrange(10**9)))
        elif chance.random() < 0.2:
            writer.unregister_module(name)
        else:
            newest = registry.resolve(name).version
            versions = {max(1, newest - chance.randrange(3)): 1.0 + chance.randrange(9) for _ in range(2)}
            kept = {kept.provenance.version for kept in registry.history(name)}
            if kept.issuperset(versions):
                writer.set_label(name, chance.choice(("live", "champion")), versions)


def write_the_end(folder: str) -> None:
    with RegistryWriter(folder) as writer:
        writer.register_module(ModuleInfo("other.D"))
        writer.register_module(ModuleInfo("acme.End"))


# The watcher's side


def state_of(snapshot: Snapshot, pattern: str) -> State:
    """The registry as a watcher of these names should have it."""
    found: State = {}
    for name in snapshot.names_starting(""):
        if fnmatchcase(name, pattern):
            kept = snapshot.describe(name)
            found[name] = kept.provenance.version, kept.info.estimated_duration
            for label, named in snapshot.labels(name).items():
                found[f"{name}@{label}"] = named.versions
    return found


class Replaying(threading.Thread):
    """Keeps a copy of the registry by what it is told. Where it can, it compares at each revision."""

    def __init__(self, folder: Path, pattern: str, since: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.pattern = folder, pattern
        self.state: State = {}
        self.seen = self.compared = 0
        self.error: BaseException | None = None
        self.is_over = threading.Event()
        self.since = since
        self.start()

    def run(self) -> None:
        try:
            with Registry(self.folder, cache_size=4) as registry:
                for change in registry.watch(self.since, names=self.pattern, records=True, timeout=PATIENCE):
                    self.follow(registry, change)
                    if "acme.End" in self.state:
                        return
        except BaseException as error:
            self.error = error

    def follow(self, registry: Registry, change: ChangeWithRecords) -> None:
        with registry.snapshot() as snapshot:
            truth = state_of(snapshot, self.pattern)
            now = snapshot.revision
        if change.everything:
            self.state, self.seen = truth, now
            return
        if change.revision <= self.seen:  # it was read again already
            return
        self.seen = change.revision
        for module in change.modules:
            if module.action == "unregistered":
                self.state.pop(module.name)
            elif module.name in change.records:
                record = change.records[module.name]
                self.state[module.name] = module.version, record.info.estimated_duration
                assert record.provenance.version == module.version
            else:  # the version is kept no longer, so a newer one is told later
                self.state[module.name] = module.version, None
        for label in change.labels:
            if label.new:
                self.state[f"{label.name}@{label.label}"] = dict(label.new)
            else:
                self.state.pop(f"{label.name}@{label.label}")
        if now == change.revision:
            assert self.state == truth
            self.compared += 1


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(3, 12))])
def test_what_watchers_replay_is_the_registry(tmp_path: Path, seed: int) -> None:
    folder, chance = tmp_path / "registry", random.Random(seed)
    with RegistryWriter(folder) as writer:
        writer.register_module(ModuleInfo("acme.A"))
    backup(tmp_path / "copy", folder)
    watchers = [Replaying(folder, pattern, 0) for pattern in ("*", "acme.*", "other.?")]
    for number in range(6):
        kept = chance.choice((8192, 8192, 4))
        kill = f"{chance.choice(FAILPOINTS)}=kill@{chance.randrange(1, 12)}" if number % 2 else ""
        with child(__name__, "write", folder, chance.random(), 12, kept, DSPY_REGISTRY_FAILPOINTS=kill) as writing:
            writing.heard()
            writing.wait()
        if number == 3:
            restore(tmp_path / "copy", folder)
    run(__name__, "write_the_end", folder)  # by another process: a watcher of this one may hold a snapshot
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        for watcher in watchers[:2]:
            watcher.join(PATIENCE)
            assert watcher.error is None, watcher.error
            assert not watcher.is_alive()
            assert watcher.state == state_of(snapshot, watcher.pattern)
    assert watchers[2].error is None, watchers[2].error
