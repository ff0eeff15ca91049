"""What the watch has brought and this host does not show yet, so that a change need not wait for a commit of this host.

A group of registrations reads nothing but the records of its own modules. Changes of other modules alone leave what was
decided on them as it is. So a group that was staged before such changes is the same when it is staged behind them: it
moves there, with their head and the next number. Any other change means that it is staged again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from typing import Final, NamedTuple

import msgspec

from dspy_registry.registry_store.cluster_rows import VERSIONS, Position
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.layout import MODULES
from dspy_registry.writer.cluster.batches import placed_puts
from dspy_registry.writer.cluster.engine import KeyValue
from dspy_registry.writer.cluster.keys import Head, Keys, head_codec
from dspy_registry.writer.cluster.staged import Staged

_KEPT: Final = 64
"""Changes of the cluster that are remembered. What was staged before them is staged again."""


class _Seen(NamedTuple):
    """One revision: the number of its change, and the modules whose records it wrote. `names` None: anything may be.

    `number` None: the revision has left the head as it was.
    """

    revision: int
    number: int | None
    names: frozenset[bytes] | None


class Ahead:
    """Of one host. Belongs to the daemon's loop. `head` is the newest head that the watch has brought."""

    def __init__(self, keys: Keys, position: Position) -> None:
        self._keys = keys
        self._seen: deque[_Seen] = deque()
        self._moved = asyncio.Event()
        self._whole_behind = 0
        self.head = 0
        self.listed(position)

    def listed(self, position: Position) -> None:
        """This host has compared everything at a position: what came before it is not known one by one."""
        self._seen.clear()
        self._whole_behind, self.head = position.revision, position.head
        self._moved.set()

    def begin(self, revision: int, head: int) -> None:
        """The watch begins at this revision, again perhaps: it brings again what this host does not show yet.

        `head` is the head of what it shows. Nobody takes for seen what is to come.
        """
        while self._seen and self._seen[-1].revision >= revision:
            self._seen.pop()
        self.head = head

    def saw(self, changes: Iterable[KeyValue]) -> list[Head]:
        """The watch has brought whole transactions, in order. Returns their heads."""
        heads = []
        for revision, group in groupby(changes, key=lambda change: change.revision):
            head, names = self._read(group)
            if isinstance(head, Head):
                heads.append(head)
            if head is not None:
                self.head = revision
            if head is not None or names is None or names:
                self._seen.append(_Seen(revision, head.number if isinstance(head, Head) else None, names))
        while len(self._seen) > _KEPT:
            self._whole_behind = self._seen.popleft().revision
        self._moved.set()
        return heads

    def _read(self, changes: Iterable[KeyValue]) -> tuple[Head | bytes | None, frozenset[bytes] | None]:
        """The head of a transaction and the names of the modules that it wrote; None: it may change anything.

        A head of another release is bytes. None: the transaction has left the head as it was.
        """
        keys, names, is_plain = self._keys, set(), True
        head: Head | bytes | None = None
        for change in changes:
            place = keys.split_record(change.key)
            if change.key == keys.head:
                head = _head(change)
                is_plain = is_plain and isinstance(head, Head) and head.host.encode() != keys.host
            elif place is not None and place[0] in (MODULES, VERSIONS):
                names.add(place[1].partition(b"\0")[0])
            elif not change.key.startswith((keys.hosts, keys.circuits, keys.leader)):
                is_plain = False
        return head, frozenset(names) if is_plain else None

    async def reached(self, revision: int) -> None:
        """Wait until the watch has brought the head of a revision."""
        while self.head < revision:
            self._moved.clear()
            await self._moved.wait()

    def moved(self, staged: Staged) -> Staged | None:
        """A group as it is behind everything that was seen since it was staged. None: it has to be staged again."""
        position = staged.position
        behind = [seen for seen in self._seen if seen.revision > position.revision]
        if position.revision < self._whole_behind:
            return None
        for seen in behind:
            if staged.names is None or seen.names is None or not seen.names.isdisjoint(staged.names):
                return None
            if seen.number is not None:
                position = msgspec.structs.replace(position, head=seen.revision, number=seen.number)
        if position is staged.position:
            return staged
        return replace(staged, position=position, puts=placed_puts(self._keys, position.number + 1, staged.records))


def _head(change: KeyValue) -> Head | bytes:
    """Bytes: it is gone, or of another release."""
    try:
        head: Head = head_codec.load(change.value or b"")
    except CorruptRecordError:
        return change.value or b""
    return head
