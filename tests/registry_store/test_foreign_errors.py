"""Errors of the system, of LMDB and of decoders are told as ours, with the file or folder and a remedy."""

from __future__ import annotations

import os
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from dspy_registry import ModuleInfo, Registry, RegistryError, RegistryWriter
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.check.checker import check
from dspy_registry.registry_store.codec import seal
from dspy_registry.writer.repair.repair import repair
from dspy_registry.writer.restore import restore
from tests.support.processes import run, say
from tests.support.raw_access import opened
from tests.support.selection import each

packed = msgspec.msgpack.encode
VALUES = {
    "missing": None,
    "empty": b"",
    "no checksum": b"junk",
    "sealed nothing": seal(b""),
    "sealed noise": seal(b"\xff" * 40),
    "sealed nil": seal(b"\xc0"),
    "no text": seal(b"\xd9\x02\xff\xfe"),
    "negative": seal(packed([-1, -1, -1])),
    "huge": seal(packed([2**63, 2**63, 2**63])),
    "beyond the word": seal(packed([2**60, 0, 0])),
    "other shape": seal(packed({"a": [["b"]]})),
}
ROWS = [
    *(("meta", key) for key in (layout.META_STATE, layout.META_ID, layout.META_VOCABULARY, layout.META_FORMAT)),
    ("modules", b"a.B"),
    ("sequences", layout.sequence_row_key(0)),
    ("postings", layout.posting_key(b"capability:x", 0)),
    ("aliases", b"cot"),
    ("changes", layout.revision_key(2)),
    ("history", layout.versioned_key("a.B", 1)),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "damaged"
    with RegistryWriter(path) as writer:
        for duration in range(3):
            writer.register_module(ModuleInfo("a.B", estimated_duration=duration, capabilities=("x",)))
        writer.set_alias("cot", "dspy.ChainOfThought")
    return path


def uses(folder: Path) -> Iterator[Callable[[], object]]:
    """Everything that can be done, each of which may raise errors of ours alone."""
    yield lambda: list(check(folder))
    yield lambda: backup(folder.parent / "backup", folder)
    yield lambda: restore(folder.parent / "backup", folder.parent / "restored")
    yield lambda: read_all(folder)
    yield lambda: write_all(folder)


def read_all(folder: Path) -> None:
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        for complete in (snapshot.unregistered_names, lambda: snapshot.words("capability"), snapshot.aliases):
            with suppress(RegistryError):
                list(complete())
        for queries in (registry, snapshot):
            for ask in (
                lambda queries=queries: queries.get_module("a.B"),
                lambda queries=queries: queries.get_module("cot"),
                lambda queries=queries: queries.describe("a.B"),
                lambda queries=queries: queries.find_by_capability("x"),
                lambda queries=queries: queries.find(max_memory="low"),
                lambda queries=queries: list(queries),
                lambda queries=queries: queries.history("a.B"),
                lambda queries=queries: queries.history("a.Nobody"),
                lambda queries=queries: queries.find(capabilities=("nothing",)),
                lambda queries=queries: queries.usage("a.B"),
                lambda queries=queries: queries.routing_recommendation("a.B"),
                lambda queries=queries: queries.revision,
                lambda queries=queries: len(queries),
            ):
                with suppress(RegistryError):
                    ask()


def write_all(folder: Path) -> None:
    with RegistryWriter(folder) as writer:
        for change in (
            lambda: writer.register_module(ModuleInfo("a.B", estimated_duration=77)),
            lambda: writer.register_module(ModuleInfo("a.New", capabilities=("x",))),
            lambda: writer.set_implications({"x": ("y",)}),
            lambda: writer.unregister_module("a.B"),
            lambda: writer.remove_alias("cot"),
        ):
            with suppress(RegistryError):
                change()


def assert_ours(folder: Path) -> None:
    for use in uses(folder):
        with suppress(RegistryError):
            use()
    for name in ("backup", "restored"):
        shutil.rmtree(folder.parent / name, ignore_errors=True)


@pytest.mark.parametrize("share", [len(ROWS), pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("value", VALUES)
def test_i23_no_value_that_is_stored_raises_an_error_that_is_not_ours(folder: Path, value: str, share: int) -> None:
    """In each row, or in one: another one for the next value."""
    sound = folder.parent / "sound"
    folder.rename(sound)
    for database, key in ROWS[list(VALUES).index(value) % share :: share]:
        shutil.copytree(sound, folder)
        with opened(folder) as (_, put):
            put(database, key, VALUES[value])
        assert_ours(folder)
        shutil.rmtree(folder)


KEYS = {
    "no text": b"\xff\xfe",
    "no text and a version": b"\xff\xfe\0\0\0\0\1",
    "a huge number": b"\xff" * 300,
    "a term without its end": b"capability:" + b"\xff" * 100,
}


DATABASES = [name.decode() for name in layout.DATABASES]


@pytest.mark.parametrize("share", [len(KEYS), pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("database", each(3, DATABASES))
def test_i23_no_key_that_is_stored_raises_an_error_that_is_not_ours(folder: Path, database: str, share: int) -> None:
    """Keys that nobody stored: no UTF-8, or a number that does not fit. The check names each.

    Each of them, or one: another one in the next database.
    """
    sound = folder.parent / "sound"
    folder.rename(sound)
    for key in list(KEYS.values())[DATABASES.index(database) % share :: share]:
        shutil.copytree(sound, folder)
        with opened(folder) as (_, put):
            put(database, key, seal(b"\xc0"))
        assert list(check(folder))
        assert_ours(folder)
        with suppress(RegistryError):
            repair(folder, folder.parent / "repaired")
        for left in (folder, folder.parent / "repaired"):
            shutil.rmtree(left, ignore_errors=True)


@pytest.mark.parametrize("number", each(2, [float("inf"), -5.0, 1e300, 0.5, float("nan")]))
@pytest.mark.parametrize("at", [0, 64])
def test_i23_no_word_raises_an_error_that_is_not_ours(folder: Path, number: float, at: int) -> None:
    with (folder / layout.REVISION_FILE).open("r+b") as file:
        os.pwrite(file.fileno(), struct.pack("=d", number), at)
    assert_ours(folder)


def with_few_files(folder: str, action: str) -> None:
    """With one file more each time, until it is enough."""
    actions: dict[str, Callable[[], object]] = {
        "read": lambda: Registry(folder).close(),
        "write": lambda: RegistryWriter(folder).close(),
        "check": lambda: list(check(folder)),
        "backup": lambda: backup(f"{folder}.backup", folder),
    }
    actions[action]()  # all is imported now
    shutil.rmtree(f"{folder}.backup", ignore_errors=True)
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    for more in range(20):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, used + 40))
        try:
            actions[action]()
        except RegistryError as error:
            say([type(error).__name__, bool(error.remedy)])
        else:
            say("done")
            return
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, used + 40))
        assert not Path(f"{folder}.backup").exists()  # although no folder can be listed without a file


@pytest.mark.parametrize("action", ["read", "write", "check", "backup"])
def test_i23_too_many_open_files_are_told(registry_folder: Path, action: str) -> None:
    RegistryWriter(registry_folder).close()
    said = run(__name__, "with_few_files", registry_folder, action)
    assert said[-1] == "done"
    assert said[:-1]
    assert all(has_remedy for _, has_remedy in said[:-1]), said
