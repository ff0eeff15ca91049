"""Damage within LMDB, which LMDB cannot see: values under other keys, rows that are gone or doubled."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb

KINDS = ("values exchanged", "value repeated", "row missing", "key moved", "value of another database")
CANNOT_BE_MISSED = ("aliases", "usage", "requests", "labels", "policies", "programs", "layers", "meta")
"""Of these nothing else in a registry says how many rows there should be."""


def databases(folder: Path) -> list[str]:
    """Those that hold anything."""
    with _opened(folder) as env, env.begin() as txn:
        names = [bytes(key).decode() for key, _ in txn.cursor()]
    return [name for name in names if _count(folder, name)]


def _count(folder: Path, name: str) -> int:
    with _opened(folder) as env:
        database = env.open_db(name.encode(), create=False)
        with env.begin() as txn:
            entries: int = txn.stat(database)["entries"]
            return entries


def damage_rows(folder: Path, kind: str, name: str, chance: random.Random) -> str:
    """Do it; what was done, in words ("": this database has not enough rows for it)."""
    with _opened(folder) as env:
        handles = {each: env.open_db(each.encode(), create=False) for each in databases_of(env)}
        with env.begin(write=True) as txn:
            rows = [(bytes(key), bytes(value)) for key, value in txn.cursor(handles[name])]
            return _DO[kind](txn, handles, name, rows, chance)


def databases_of(env: Any) -> list[str]:
    with env.begin() as txn:
        return [bytes(key).decode() for key, _ in txn.cursor()]


def _opened(folder: Path) -> Any:
    return lmdb.open(str(folder), map_size=1 << 30, max_dbs=64, max_readers=4096)


Rows = list[tuple[bytes, bytes]]


def _exchange(txn: Any, handles: dict[str, Any], name: str, rows: Rows, chance: random.Random) -> str:
    if len(rows) < 2:
        return ""
    (one, first), (other, second) = chance.sample(rows, 2)
    if first == second:
        return ""
    txn.put(one, second, db=handles[name])
    txn.put(other, first, db=handles[name])
    return f"{name}: values of {one!r} and {other!r} exchanged"


def _repeat(txn: Any, handles: dict[str, Any], name: str, rows: Rows, chance: random.Random) -> str:
    if len(rows) < 2:
        return ""
    (one, first), (other, second) = chance.sample(rows, 2)
    if first == second:
        return ""
    txn.put(one, second, db=handles[name])
    return f"{name}: {one!r} has the value of {other!r}"


def _lose(txn: Any, handles: dict[str, Any], name: str, rows: Rows, chance: random.Random) -> str:
    key, _ = chance.choice(rows)
    txn.delete(key, db=handles[name])
    return f"{name}: {key!r} is missing"


def _move(txn: Any, handles: dict[str, Any], name: str, rows: Rows, chance: random.Random) -> str:
    key, value = chance.choice(rows)
    at = chance.randrange(len(key))
    moved = key[:at] + bytes([key[at] ^ (1 << chance.randrange(8))]) + key[at + 1 :]
    if txn.get(moved, db=handles[name]) is not None:
        return ""
    txn.delete(key, db=handles[name])
    txn.put(moved, value, db=handles[name])
    return f"{name}: {key!r} moved to {moved!r}"


def _of_another(txn: Any, handles: dict[str, Any], name: str, rows: Rows, chance: random.Random) -> str:
    key, value = chance.choice(rows)
    other = chance.choice([each for each in handles if each != name])
    theirs = [bytes(found) for _, found in txn.cursor(handles[other])]
    if not theirs or (found := chance.choice(theirs)) == value:
        return ""
    txn.put(key, found, db=handles[name])
    return f"{name}: {key!r} has a value of {other}"


_DO: dict[str, Callable[[Any, dict[str, Any], str, Rows, random.Random], str]] = {
    "values exchanged": _exchange,
    "value repeated": _repeat,
    "row missing": _lose,
    "key moved": _move,
    "value of another database": _of_another,
}
