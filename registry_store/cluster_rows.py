"""What a host keeps of a cluster: how far it has followed it, and a row for each global record.

Both are written in the commit that shows what they are about. So a host resumes exactly where it was, also after
kill -9.
"""

from __future__ import annotations

from typing import Final

import msgspec

from dspy_registry.registry_store.codec import Sealed
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layout import META, META_GLOBAL
from dspy_registry.registry_store.scan import items_with_prefix

VERSIONS: Final = b"versions"
"""The kind of a version that is not in force and that the cluster keeps: labels name it."""
HELD: Final = b"held"
"""The kind of a program that is stored before the versions that name it: no record of the cluster."""


class Position(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far this host has followed a cluster.

    `cluster` is the cluster's id, `host` this host's id in it. Everything up to the global `revision` is applied; 0:
    nothing. `head` is the revision of the newest change among that, and `number` the count of all changes up to it.
    """

    cluster: str
    host: str
    revision: int = 0
    head: int = 0
    number: int = 0


class GlobalRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A global record as this host has applied it.

    `revision` is the global revision that last changed it. `version` is a module's version and `order` its place in the
    cluster's order of registration; 0: it is no module. `is_live`: it was not unregistered or removed. `aside` says why
    this host could not apply it ("": it is applied); `value` is then what the cluster has. `program` is the digest that
    a version names; empty: none.
    """

    revision: int
    version: int = 0
    order: int = 0
    is_live: bool = True
    aside: str = ""
    value: bytes = b""
    program: bytes = b""


position_codec: Final = Sealed(Position, "the position in the cluster", META)
global_row_codec: Final = Sealed(GlobalRow, "what is known of a global record", META)


def row_key(kind: bytes, key: bytes) -> bytes:
    """Key in `meta`: the kind of record, and its key among those. An empty kind begins all of them."""
    return META_GLOBAL + kind + b"\0" * bool(kind) + key


def split_row_key(key: bytes) -> tuple[bytes, bytes]:
    """The reverse: kind and key."""
    kind, _, rest = key[len(META_GLOBAL) :].partition(b"\0")
    return kind, rest


def held_programs(txn: Transaction, dbs: Databases) -> set[bytes]:
    """The digests of programs that are stored before the versions that name them. A kill may leave some behind."""
    prefix = row_key(HELD, b"")
    return {key[len(prefix) :] for key, _ in items_with_prefix(txn, dbs.meta, prefix)}
