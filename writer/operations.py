"""The rows that a commit writes and deletes."""

from __future__ import annotations

from collections import Counter, defaultdict

from dspy_registry.registry_store.changes import Change, State


class Operations:
    """The puts and deletes of each named database, and the change for the log.

    `change` is None when no reader can see a difference. Then there is no new revision, `state` is None too, and
    nothing is announced. Else `announcement` is the encoded change, and `state` the head from then on. `references`
    says by how much more or less often each program is named; None: no program is named.
    """

    __slots__ = ("announcement", "change", "deletes", "puts", "references", "state")

    def __init__(self) -> None:
        self.puts: defaultdict[bytes, dict[bytes, bytes]] = defaultdict(dict)
        self.deletes: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self.change: Change | None = None
        self.state: State | None = None
        self.announcement = b""
        self.references: Counter[bytes] | None = None

    def __bool__(self) -> bool:
        return any(self.puts.values()) or any(self.deletes.values())
