"""Collecting programs of the cluster: one that no global version names goes, with what an upload left behind.

Only a change that moves `head` can name a program. So it is decided on what this host has applied, and carried out only
if `head` has not moved since.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from dspy_registry.registry_store.cluster_rows import Position, split_row_key
from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.layout import ALIASES, LABELS, META_VOCABULARY, POLICIES
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.cluster.following import load_position
from dspy_registry.writer.cluster.global_rows import rows
from dspy_registry.writer.cluster.keys import ROLLOUTS, Keys
from dspy_registry.writer.cluster.program_store import ProgramStore
from dspy_registry.writer.daemon.host import Host

_NAMES_NONE: Final = (ALIASES, LABELS, META_VOCABULARY, POLICIES, ROLLOUTS)
"""Kinds of records that name no program in any release."""

_log = logging.getLogger("dspy_registry")


class ProgramCollector:
    """Belongs to the origin. `is_due`: something may be there that no version names."""

    def __init__(self, host: Host, keys: Keys, programs: ProgramStore) -> None:
        self._host = host
        self._keys = keys
        self._programs = programs
        self.is_due = True  # an earlier run of this daemon may have been cut short

    async def collect(self) -> None:
        """Remove what no version names. What fails is tried again behind the next change."""
        if not self.is_due:
            return
        try:
            self.is_due = not await self._collect()
        except RegistryError as error:
            _log.info("programs of the cluster are collected later: %s", error.message)

    async def _collect(self) -> bool:
        heads = await self._programs.heads()
        if not heads:
            return True
        position, named = await asyncio.to_thread(self._named)
        if named is None:
            return True  # what cannot be read may name any: another release collects
        for digest, (revision, head) in heads.items():
            if digest in named or not self._programs.may_be_removed(head):
                continue
            expected = {self._keys.head: position.head, self._keys.program_head(digest): revision}
            if not await self._programs.remove(digest, expected):
                return False
        return True

    def _named(self) -> tuple[Position, set[bytes] | None]:
        """The digests that global versions name, as of a position. None: a version cannot be read."""
        environment = self._host.environment
        named: set[bytes] = set()
        with environment.long_read() as txn:
            catalog = Catalog(txn, environment.dbs)
            position = load_position(catalog) or Position("", "")
            for place, row in rows(catalog):
                if row.aside and split_row_key(place)[0] not in _NAMES_NONE:
                    return position, None
                named.add(row.program)
        return position, named
