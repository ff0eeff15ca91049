"""What the cluster's engine has to be able to do. etcd does; another engine could be put in its place.

Revisions count the transactions of the whole cluster, in one order. Keys that share a transaction share its revision.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from dspy_registry.registry_store.errors import ClusterUnavailableError


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """A key, its value, and the revision that last wrote it. `value` None: that revision deleted the key.

    `lease` is the one that the key ends with; 0: none. `copied` is the revision of a batch that showed this value, from
    which it was copied later; 0: it was not.
    """

    key: bytes
    value: bytes | None
    revision: int
    lease: int = 0
    copied: int = 0

    @property
    def since(self) -> int:
        """The revision that first showed this value."""
        return self.copied or self.revision


@dataclass(frozen=True)
class Outcome:
    """What became of a transaction. `found` are the keys that were to be read when it was refused."""

    succeeded: bool
    revision: int
    found: Mapping[bytes, KeyValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Events:
    """A step of a watch: whole transactions, in order; none: a sign of life. `newest` is the engine's revision."""

    changes: Sequence[KeyValue]
    newest: int


@dataclass(frozen=True)
class Page:
    """Part of a range, read at `revision`. `more`: the range goes on after its last key."""

    items: Sequence[KeyValue]
    revision: int
    more: bool


class UnknownOutcomeError(ClusterUnavailableError):
    """A transaction was sent and no node said what became of it."""


class CompactedError(Exception):
    """The engine no longer has the revision that was asked for."""


class LeaseGoneError(Exception):
    """The engine does not know the lease."""


class Engine(Protocol):
    """All calls raise ClusterUnavailableError, ClusterAccessError, ClusterFullError."""

    async def cluster_id(self) -> str:
        """The identity of the cluster."""

    async def transact(
        self,
        expected: Mapping[bytes, int],
        puts: Mapping[bytes, bytes],
        reads: Sequence[bytes] = (),
        *,
        leased: Mapping[bytes, int] | None = None,
        below: Mapping[bytes, int] | None = None,
        removed: Sequence[bytes] = (),
    ) -> Outcome:
        """Put all, if each key of `expected` was last written at that revision (0: it does not exist). Else read.

        Each key of `below` must have been written before that revision. `leased` has the leases of puts, `removed` the
        prefixes of what is deleted. Raises UnknownOutcomeError when it was sent and may have been carried out,
        LeaseGoneError.
        """

    async def range_at(self, prefix: bytes, after: bytes = b"", revision: int = 0, limit: int = 500) -> Page:
        """Keys with a prefix, behind the key `after`, as of a revision; 0: the newest. Raises CompactedError."""

    def watch_from(self, prefix: bytes, revision: int) -> AsyncIterator[Events]:
        """Every change of keys with a prefix, from a revision on, in order. Raises CompactedError.

        Ends with ClusterUnavailableError when the node is silent for too long.
        """

    async def lease(self, seconds: int) -> int:
        """A lease: keys put with it are removed when it ends."""

    async def keep_lease(self, lease: int) -> None:
        """Prolong a lease. Raises LeaseGoneError."""

    async def lease_left(self, lease: int) -> float:
        """Seconds until a lease ends, unless it is prolonged. Raises LeaseGoneError."""

    async def end_lease(self, lease: int) -> None:
        """End a lease and remove its keys."""

    async def close(self) -> None:
        """Close all connections."""
