"""A group of clients' changes, staged: what is to be put into the cluster, and what that rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dspy_registry.registry_store.cluster_rows import Position
from dspy_registry.writer.daemon.group import Group

MOST_KEYS: Final = 100
"""Keys that one transaction puts. etcd refuses more than 128 operations."""
MOST_BYTES: Final = 1024 * 1024
"""Bytes that one transaction puts. etcd refuses more than 1.5 MiB."""


@dataclass
class Staged:
    """A group staged on a position: what it puts, and the clients whose answers it stores.

    `expected` are revisions that keys beside the head must have. `held` are those of them that no one else may change.
    `removed` are prefixes of keys of versions. `programs` are those that it names and that the cluster may not have, as
    pieces; (): they are stored on this host. `frees`: a program may be named by nothing afterwards. `names` are the
    modules whose records, and no others, its staging has read, with these records as this host has them (None: it has
    none); None: it may have read anything.
    """

    position: Position
    group: Group
    change: bytes
    puts: dict[bytes, bytes]
    answers: dict[bytes, bytes]
    is_repeated: bool
    records: dict[tuple[bytes, bytes], bytes]
    expected: dict[bytes, int]
    held: Mapping[bytes, int]
    removed: list[bytes] = field(default_factory=list)
    programs: dict[bytes, Sequence[bytes]] = field(default_factory=dict)
    frees: bool = False
    names: Mapping[bytes, bytes | None] | None = None

    @property
    def is_for_one_alone(self) -> bool:
        """Whether its requests have to go to the cluster one by one."""
        return self.is_too_large or self.is_repeated or bool(self.programs)

    @property
    def is_too_large(self) -> bool:
        """Whether one transaction cannot hold it."""
        keys = len(self.puts) + len(self.answers) + len(self.removed) + 2
        size = sum(len(key) + len(value) for part in (self.puts, self.answers) for key, value in part.items())
        return keys > MOST_KEYS or size > MOST_BYTES
