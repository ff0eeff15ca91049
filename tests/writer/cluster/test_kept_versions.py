"""I8 on a host of a cluster: after every commit it keeps the versions that it must, and no other, whatever it missed.

A model of the cluster changes at random. The host follows its transactions in groups, skips some behind a compaction
and lists, and declares and withdraws layers of its own. No etcd is needed: the
stages that the mirror submits are carried out as it does, each twice as behind a kill.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dspy_registry import Registry
from dspy_registry.registry_store.cluster_rows import VERSIONS, Position, row_key, split_row_key
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.labels import Label
from dspy_registry.registry_store.layers import Layer
from dspy_registry.registry_store.layout import HISTORY_VERSIONS, LABELS, MODULES
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.cluster.engine import KeyValue
from dspy_registry.writer.cluster.following import adopt_all, differs, follow
from dspy_registry.writer.cluster.global_labels import GlobalLabel, GlobalVersion, label_codec, version_codec
from dspy_registry.writer.cluster.global_rows import part_key, version_key
from dspy_registry.writer.cluster.keys import Keys
from dspy_registry.writer.cluster.membership import stage_join
from dspy_registry.writer.cluster.records import KINDS, GlobalModule
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.rollback import choose, read_versions
from dspy_registry.writer.store import Store
from tests.conftest import violations
from tests.support.daemon_process import module
from tests.support.selection import each

KEYS = Keys("/dspy-registry/", "host")
START = Position("cluster", "host")
NAMES = ("acme.One", "acme.Two")


class Model:
    """The cluster as etcd would have it: the records, and the transactions that led there."""

    def __init__(self) -> None:
        self.revision = 0
        self.state: dict[bytes, KeyValue] = {}
        self.transactions: list[list[KeyValue]] = []
        self.versions: dict[str, int] = {}
        self.live: dict[str, int] = {}  # the order of each module that is registered
        self.labels: dict[str, dict[str, tuple[tuple[int, int], ...]]] = {name: {} for name in NAMES}

    def transact(self, puts: dict[bytes, bytes | None]) -> None:
        self.revision += 1
        changes = [KeyValue(key, value, self.revision) for key, value in puts.items()]
        self.transactions.append(changes)
        for change in changes:
            if change.value is None:
                self.state.pop(change.key, None)
            else:
                self.state[change.key] = change

    def register(self, name: str) -> None:
        version = self.versions[name] = self.versions.get(name, 0) + 1
        order = self.live.setdefault(name, self.revision + 1)
        record = GlobalModule(version, order, self.info(name, version))
        puts: dict[bytes, bytes | None] = {
            KEYS.record(MODULES, name.encode()): KINDS[MODULES].codec.dump(record),
            **self.of_versions(name, version),
        }
        self.transact(puts)

    def unregister(self, name: str) -> None:
        order, labels = self.live.pop(name), self.labels[name]
        gone = GlobalModule(self.versions[name], order)
        puts: dict[bytes, bytes | None] = {KEYS.record(MODULES, name.encode()): KINDS[MODULES].codec.dump(gone)}
        for label in labels:
            puts[KEYS.record(LABELS, part_key(name, label))] = label_codec.dump(GlobalLabel())
        self.labels[name] = {}
        self.transact({**puts, **self.of_versions(name, 0)})

    def label(self, name: str, label: str, versions: list[int]) -> None:
        runs = tuple((version, 10_000 // len(versions)) for version in versions)
        self.labels[name][label] = ((runs[0][0], runs[0][1] + 10_000 % len(versions)), *runs[1:])
        record = GlobalLabel(self.labels[name][label])
        place = KEYS.record(LABELS, part_key(name, label))
        self.transact({place: label_codec.dump(record), **self.of_versions(name, self.versions[name])})

    def remove(self, name: str, label: str) -> None:
        del self.labels[name][label]
        place = KEYS.record(LABELS, part_key(name, label))
        self.transact({place: label_codec.dump(GlobalLabel()), **self.of_versions(name, self.versions[name])})

    def of_versions(self, name: str, in_force: int) -> dict[bytes, bytes | None]:
        """What the rule of `label_staging` writes of versions."""
        named = {version for runs in self.labels[name].values() for version, _ in runs}
        wanted = {KEYS.record(VERSIONS, version_key(name, version)): version for version in named - {in_force}}
        known = {key for key in self.state if key.startswith(KEYS.record(VERSIONS, part_key(name, "")))}
        puts = {
            key: version_codec.dump(GlobalVersion(version, self.info(name, version), None, 1))
            for key, version in wanted.items()
            if key not in known
        }
        return {**puts, **dict.fromkeys(known - wanted.keys())}

    @staticmethod
    def info(name: str, version: int) -> bytes:
        return encode(module(name, estimated_duration=version))


class Host:
    """A registry that follows the model, in groups of transactions, or lists what it has missed."""

    def __init__(self, store: Store, model: Model) -> None:
        self.store, self.model = store, model
        self.known = 0  # how many of the model's transactions it has seen
        self.commit(lambda draft: stage_join(draft, START, ()))

    def commit(self, stage: Callable[[Draft], object]) -> None:
        """What the mirror submits; behind each, `check` is content."""
        self.store.committer.commit(lambda draft: (stage(draft), None)[1])
        assert violations(self.store.folder) == []

    def catalog(self, txn: Any) -> Catalog:
        return Catalog(txn, self.store.environment.dbs)

    def watch(self, steps: int) -> None:
        group = self.model.transactions[self.known : self.known + steps]
        changes = [change for transaction in group for change in transaction]
        self.known += len(group)
        until = self.known
        self.commit(lambda draft: follow(draft, KEYS, START, changes, until))
        self.commit(lambda draft: follow(draft, KEYS, START, changes, until))  # a commit that came twice does nothing

    def list(self) -> None:
        items = list(self.model.state.values())
        self.known = self.model.revision
        listed = msgspec.structs.replace(START, revision=self.known)
        with self.store.environment.reading() as txn:
            draft = Draft(self.catalog(txn))
            different = [item for item in items if differs(draft, KEYS, item)]
            rows = [place for place, _ in self.catalog(txn).cluster_rows(row_key(b"", b""))]
        seen = {item.key for item in items}
        gone = [place for place in rows if KEYS.record(*split_row_key(place)) not in seen]
        self.commit(lambda draft: adopt_all(draft, KEYS, listed, different, gone))

    def declare(self, name: str, chance: random.Random) -> None:
        """What a manifest of this host does."""
        if chance.random() < 0.5:
            layer = Layer("manifest:own.yaml", {"estimated_duration": 1000 + chance.randrange(100)})
            self.commit(lambda draft: draft.declare(name, layer))
        else:
            self.commit(lambda draft: draft.withdraw(name, "manifest:own.yaml"))

    def agree(self) -> None:
        """Readers see the cluster's modules, labels, and each version that a label names."""
        with Registry(self.store.folder) as registry, registry.snapshot() as snapshot:
            for name in self.model.live:
                assert snapshot.describe(name).provenance.version == self.model.versions[name]
                labels = {label: found.runs for label, found in snapshot.labels(name).items()}
                assert labels == self.model.labels[name]
                for runs in labels.values():
                    for version, _ in runs:
                        assert snapshot.get_module(f"{name}@{version}").estimated_duration == version


def change(model: Model, chance: random.Random) -> None:
    """One change of the cluster. Versions are made most often, so that labels fall behind the window."""
    name = chance.choice(NAMES)
    if name not in model.live or chance.random() < 0.7:
        for _ in range(chance.choice((1, 1, 2, 5, 18))):
            model.register(name)
    elif chance.random() < 0.12:
        model.unregister(name)
    elif model.labels[name] and chance.random() < 0.4:
        model.remove(name, chance.choice(sorted(model.labels[name])))
    else:
        newest = model.versions[name]
        kept = range(max(1, newest - HISTORY_VERSIONS), newest + 1)
        model.label(name, chance.choice(("live", "old")), chance.sample(kept, min(len(kept), chance.choice((1, 2)))))


@pytest.mark.parametrize("seed", each(3, range(24)))
def test_i8_on_a_host_that_misses_what_it_misses(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    model = Model()
    store = Store(tmp_path / "registry")
    try:
        host = Host(store, model)
        for _ in range(25):
            for _ in range(chance.choice((1, 3, 8))):
                change(model, chance)
            step = chance.random()
            if step < 0.25:
                host.list()
                host.agree()
            elif step < 0.85:
                host.watch(chance.choice((1, 2, 40)))
            else:
                host.declare(chance.choice(NAMES), chance)
        host.list()
        host.agree()
    finally:
        store.close()


def test_a_label_that_is_not_the_clusters_is_found(tmp_path: Path) -> None:
    """One that is missing, and one that is there on this host alone."""
    model = Model()
    store = Store(tmp_path / "registry")
    try:
        host = Host(store, model)
        model.register(NAMES[0])
        model.label(NAMES[0], "live", [1])
        host.list()
        commit = store.committer.commit
        label = Label(((1, 10_000),))
        commit(lambda draft: draft.put_labels(NAMES[0], {"mine": label}, ("live", "mine")))
        found = {line.split(":")[0] for line in violations(store.folder)}
        assert found == {f"I34 labels/{NAMES[0]}/live", f"I34 labels/{NAMES[0]}/mine"}
        commit(lambda draft: draft.put_labels(NAMES[0], {"live": label}, ("live", "mine")))
        assert violations(store.folder) == []
    finally:
        store.close()


def test_i8_behind_a_gap_and_an_unregistration(tmp_path: Path) -> None:
    """The version before the gap is beyond the last 16 then, and no label names it."""
    model = Model()
    store = Store(tmp_path / "registry")
    try:
        host = Host(store, model)
        for _ in range(20):
            model.register(NAMES[0])
        host.list()
        for _ in range(20):
            model.register(NAMES[0])
        host.list()
        model.unregister(NAMES[0])
        host.watch(100)
        assert violations(store.folder) == []
    finally:
        store.close()


def test_versions_that_came_one_after_the_other_are_rolled_back_to_although_one_commit_brought_them(
    tmp_path: Path,
) -> None:
    model = Model()
    store = Store(tmp_path / "registry")
    try:
        host = Host(store, model)
        for _ in range(3):
            model.register(NAMES[0])
        host.watch(3)
        assert choose(read_versions(store.folder, NAMES[0]), None).version == 2
    finally:
        store.close()
