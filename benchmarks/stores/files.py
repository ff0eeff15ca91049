"""Stores in a file: SQLite, diskcache, RocksDB."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.stores.peer import Opening, Peer, decode
from benchmarks.stores.servers import ByGet
from dspy_registry import ModuleInfo

MMAP_BYTES = 4 << 30
_CACHE_KIB = 256 * 1024


def connect(path: Path) -> sqlite3.Connection:
    """Settings that SQLite's documentation advises for many readers and a writer: WAL, mmap, a large page cache."""
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"PRAGMA mmap_size={MMAP_BYTES}")
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    return connection


class SQLiteReads:
    """Keeps one cursor. The prepared statement is in the connection's cache."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        cursor = self._connection.cursor()
        self._execute = cursor.execute
        self._row = cursor.fetchone

    def get(self, name: str) -> ModuleInfo:
        self._execute("SELECT record FROM module WHERE name = ?", (name,))
        return decode(self._row()[0])

    def close(self) -> None:
        self._connection.close()


class SQLite(Peer):
    """A table of records by name, WITHOUT ROWID: the records are in the tree of the key."""

    key = "sqlite"
    label = "SQLite (WAL, mmap)"
    install = "part of Python"
    module = "sqlite3"
    settings = "WAL, mmap, WITHOUT ROWID, prepared statement and cursor kept, ANALYZE"

    def __init__(self) -> None:
        self._path = Path()

    def start(self, folder: Path, records: Iterable[tuple[str, bytes]]) -> None:
        self._path = folder / "modules.sqlite"
        connection = connect(self._path)
        connection.execute("CREATE TABLE module (name TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO module VALUES (?, ?)", sorted(records))
        connection.execute("COMMIT")
        connection.execute("ANALYZE")
        connection.close()

    def opening(self) -> Opening:
        return Opening(self.label, partial(SQLiteReads, self._path))

    def version(self) -> str:
        return sqlite3.sqlite_version


_DISKCACHE: dict[str, Any] = {
    "eviction_policy": "none",
    "size_limit": 1 << 40,
    "disk_min_file_size": 1 << 20,
    "sqlite_mmap_size": MMAP_BYTES,
    "sqlite_cache_size": _CACHE_KIB // 4,  # in pages of 4 KiB
}


def open_diskcache(folder: str) -> ByGet:
    """Keeps records inside the database, without eviction and without statistics."""
    import diskcache

    cache = diskcache.Cache(folder, **_DISKCACHE)
    return ByGet(cache.get, cache.close)


class DiskCache(Peer):
    """`diskcache.Cache` without eviction."""

    key = "diskcache"
    label = "diskcache"
    install = "pip install diskcache"
    module = "diskcache"
    settings = "no eviction, no statistics, records in the database, mmap"

    def __init__(self) -> None:
        self._folder = ""

    def start(self, folder: Path, records: Iterable[tuple[str, bytes]]) -> None:
        import diskcache

        self._folder = str(folder)
        with diskcache.Cache(self._folder, **_DISKCACHE) as cache, cache.transact():
            for name, record in records:
                cache.set(name, record)

    def opening(self) -> Opening:
        return Opening(self.label, partial(open_diskcache, self._folder))


class RocksReads:
    """Reads in the process that owns the database. Any other process would have to catch up before each read."""

    def __init__(self, folder: str) -> None:
        import rocksdict

        self._db = rocksdict.Rdict(folder, _rocks_options())
        self._get: Callable[[bytes], Any] = self._db.get

    def get(self, name: str) -> ModuleInfo:
        return decode(self._get(name.encode()))

    def close(self) -> None:
        self._db.close()


def _rocks_options() -> Any:
    import rocksdict

    options = rocksdict.Options(raw_mode=True)
    options.optimize_for_point_lookup(_CACHE_KIB // 1024)
    return options


class RocksDict(Peer):
    """`rocksdict.Rdict` in raw mode, tuned for point look-ups and compacted."""

    key = "rocksdict"
    label = "rocksdict"
    install = "pip install rocksdict"
    module = "rocksdict"
    settings = "raw mode, optimised for point look-ups, compacted, read by the process that owns it"

    def __init__(self) -> None:
        self._folder = ""

    def start(self, folder: Path, records: Iterable[tuple[str, bytes]]) -> None:
        import rocksdict

        self._folder = str(folder / "rocks")
        db = rocksdict.Rdict(self._folder, _rocks_options())
        for name, record in records:
            db[name.encode()] = record
        db.flush()
        db.compact_range(None, None)
        db.close()

    def opening(self) -> Opening:
        return Opening(self.label, partial(RocksReads, self._folder))
