"""The rows that a commit writes and deletes."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from dspy_registry.registry_store.changes import Change


@dataclass
class Operations:
    """The puts and deletes of each named database, and the change for the log.

    `change` is None when no reader can see a difference. Then there is no new revision. `references` says by how much
    more or less often each program is named.
    """

    puts: dict[bytes, dict[bytes, bytes]] = field(default_factory=lambda: defaultdict(dict))
    deletes: dict[bytes, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    change: Change | None = None
    references: Counter[bytes] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return any(self.puts.values()) or any(self.deletes.values())
