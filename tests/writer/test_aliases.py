"""Aliases: bounded, read once by the writer and not by every commit, and named by every change of their module."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    Change,
    CorruptRecordError,
    InvalidModuleError,
    ModuleInfo,
    Registry,
    RegistryError,
    RegistryWriter,
    UnknownModuleError,
)
from dspy_registry.registry_store.changes import change_codec
from dspy_registry.registry_store.layout import (
    ALIASES,
    FORMAT_VERSION,
    MAX_ALIASES,
    MAX_ALIASES_OF_MODULE,
    revision_key,
)
from dspy_registry.writer import aliases, catalog
from dspy_registry.writer.catalog import Catalog
from tests.support.raw_access import behind

Reads = list[bytes]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """The aliases that the writer decodes."""
    decoded: Reads = []
    decode = aliases.meaning_of

    def counted(value: bytes, key: bytes, format: int) -> aliases.Alias:
        decoded.append(value)
        return decode(value, key, format)

    monkeypatch.setattr(catalog, "meaning_of", counted)
    return decoded


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as writer:
        yield writer


def declare(writer: RegistryWriter, pairs: dict[str, str]) -> None:
    """Many aliases in one commit, whatever their number."""

    def stage(draft: Any) -> None:
        for alias, name in pairs.items():
            draft.aliases.put(alias, None, aliases.Alias(name, "client"))

    writer.store.committer.commit(stage)


def last_change(writer: RegistryWriter) -> Change:
    environment = writer.store.environment
    with environment.reading() as txn:
        key = revision_key(writer.revision)
        change: Change = change_codec.load(txn.get(key, None, environment.dbs.changes), key, FORMAT_VERSION)
    return change


def kept(writer: RegistryWriter) -> dict[str, set[str]]:
    """The aliases of each module as the next commit will have them."""
    found: dict[str, set[str]] = {}

    def look(draft: Any) -> None:
        names = {meaning.name for meaning in draft.catalog.aliases().values()}
        found.update({name: set(draft.catalog.aliases_of(name)) for name in names})

    writer.store.committer.commit(look)
    return found


def stored(writer: RegistryWriter) -> dict[str, set[str]]:
    environment, found = writer.store.environment, dict[str, set[str]]()
    with environment.reading() as txn:
        for alias, meaning in Catalog(txn, environment.dbs).aliases().items():
            found.setdefault(meaning.name, set()).add(alias)
    return found


# Read once


def test_a_commit_does_not_read_all_aliases(writer: RegistryWriter, reads: Reads) -> None:
    writer.register_modules([ModuleInfo(f"a.M{number}") for number in range(20)])
    declare(writer, {f"x{number}": f"a.M{number % 20}" for number in range(400)})
    reads.clear()
    for duration in range(30):
        writer.register_module(ModuleInfo("a.M3", estimated_duration=duration))
        writer.set_alias(f"y{duration}", "a.M4")
        writer.remove_alias(f"y{duration}")
        writer.register_module(ModuleInfo(f"b.M{duration}"))
        writer.unregister_module(f"b.M{duration}")
    assert len(reads) <= 400 + 30 * 6  # all of them once, and the row that is being changed
    assert last_change(writer).keys == ("b.M29", "M29", "m29")
    writer.register_module(ModuleInfo("a.M3"))
    assert set(last_change(writer).keys) == {"a.M3", "M3", "m3", *(f"x{number}" for number in range(3, 400, 20))}


def test_many_modules_with_many_aliases_are_changed_in_one_reading(writer: RegistryWriter, reads: Reads) -> None:
    batch = [ModuleInfo(f"a.M{number}") for number in range(200)]
    writer.register_modules(batch)
    declare(writer, {f"x{number}": f"a.M{number % 200}" for number in range(2000)})
    reads.clear()
    writer.register_modules([ModuleInfo(info.name, estimated_duration=7) for info in batch])
    assert len(reads) <= 2000
    assert len(last_change(writer).keys) == 3 * 200 + 2000


# What is kept is what is stored


def test_what_is_kept_is_what_is_stored_whatever_happens(writer: RegistryWriter) -> None:
    """Requests at random, in groups of which some fail as a whole, on drafts of which some fail alone."""
    chance = random.Random(4)
    names = [f"a.M{number}" for number in range(6)]

    def request(draft: Any) -> None:
        name, alias = chance.choice(names), f"x{chance.randrange(12)}"
        chance.choice(
            (
                lambda: draft.register(ModuleInfo(name, estimated_duration=chance.randrange(4))),
                lambda: draft.unregister(name),
                lambda: draft.set_alias(alias, name),
                lambda: draft.set_alias(alias, name, "manifest:a"),
                lambda: draft.set_alias(alias, chance.choice(names)),
                lambda: draft.remove_alias(alias),
            )
        )()

    def group(draft: Any) -> None:
        for _ in range(chance.randrange(1, 6)):
            child = draft.child()
            with suppress(RegistryError):
                request(child)
                request(child)
                draft.absorb(child)
        if chance.random() < 0.2:
            raise KeyError

    for _ in range(400):
        with suppress(KeyError):
            writer.store.committer.commit(group)
        assert kept(writer) == stored(writer)


@pytest.mark.parametrize("method", ["announce", "conclude"])
def test_i1_a_change_names_all_aliases_after_a_commit_that_failed(
    writer: RegistryWriter, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Not landed, or landed without the writer hearing of it: what was kept before is not relied on."""
    writer.register_module(ModuleInfo("a.M"))
    writer.set_alias("first", "a.M")
    file = writer.store.committer._revision_file
    with monkeypatch.context() as patched:
        patched.setattr(type(file), method, fail)
        with pytest.raises(KeyboardInterrupt):
            writer.set_alias("second", "a.M")
    writer.register_module(ModuleInfo("a.M", estimated_duration=5))
    landed = {"second"} if method == "conclude" else set()
    assert set(last_change(writer).keys) == {"a.M", "M", "m", "first", *landed}
    assert kept(writer) == stored(writer)


def fail(*_: object) -> None:
    raise KeyboardInterrupt


def test_i1_a_writer_that_comes_after_another_names_all_aliases(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as first:
        first.register_module(ModuleInfo("a.M"))
        first.set_alias("short", "a.M")
    with RegistryWriter(registry_folder) as second, Registry(registry_folder) as registry:
        assert registry.get_module("short").estimated_duration == 1000
        second.register_module(ModuleInfo("a.M", estimated_duration=5))
        assert registry.get_module("short").estimated_duration == 5


# Bounds


def test_a_module_has_so_many_aliases_and_no_more(writer: RegistryWriter) -> None:
    writer.register_modules([ModuleInfo("a.M"), ModuleInfo("a.N")])
    for number in range(MAX_ALIASES_OF_MODULE):
        writer.set_alias(f"x{number}", "a.M")
    revision = writer.revision
    with pytest.raises(InvalidModuleError, match=r"'y'.* a\.M .*64"):
        writer.set_alias("y", "a.M")
    writer.set_alias("x5", "a.M")  # it has this one
    assert writer.revision == revision
    writer.set_alias("x5", "a.N")
    writer.set_alias("y", "a.M")


def test_a_registry_has_so_many_aliases_and_no_more(writer: RegistryWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ALIASES == 65_536
    monkeypatch.setattr("dspy_registry.writer.draft.MAX_ALIASES", 3)
    writer.register_modules([ModuleInfo("a.M"), ModuleInfo("a.N")])
    for alias in "abc":
        writer.set_alias(alias, "a.M")
    with pytest.raises(InvalidModuleError, match="3"):
        writer.set_alias("d", "a.M")
    writer.set_alias("a", "a.N")

    def swap(draft: Any) -> None:
        draft.remove_alias("a")
        draft.set_alias("d", "a.M")
        with pytest.raises(InvalidModuleError):
            draft.child().set_alias("e", "a.M")

    writer.store.committer.commit(swap)
    writer.unregister_module("a.M")
    writer.set_alias("e", "a.N")


# A damaged alias


def test_i10_a_damaged_alias_can_be_set_anew_or_removed(writer: RegistryWriter, registry_folder: Path) -> None:
    writer.register_module(ModuleInfo("a.M"))
    for mend in (lambda: writer.set_alias("x", "a.M"), lambda: writer.remove_alias("x")):
        writer.set_alias("x", "a.M")
        damage(writer, b"x")
        with Registry(registry_folder) as registry, pytest.raises(CorruptRecordError):
            registry.get_module("x")
        writer.register_module(ModuleInfo("a.N", estimated_duration=writer.revision))
        assert "x" in last_change(writer).keys
        mend()
    assert stored(writer) == {}


def damage(writer: RegistryWriter, alias: bytes) -> None:
    """Behind the writer's back, as a bad disk does it."""
    with behind(writer) as (txn, dbs):
        txn.put(alias, b"damaged", db=getattr(dbs, ALIASES.decode()))
    writer.store.committer._aliases._revision = -1  # as after a restart


@pytest.mark.parametrize("asked", ["", "x" * 600, "\0", "\ud800", "none"])
def test_i17_no_string_that_is_asked_does_more_than_not_be_found(writer: RegistryWriter, asked: str) -> None:
    with pytest.raises(UnknownModuleError):
        writer.remove_alias(asked)
