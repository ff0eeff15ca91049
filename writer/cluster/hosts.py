"""Which hosts of the cluster are alive, as their presence says."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from dspy_registry.writer.cluster.engine import KeyValue
from dspy_registry.writer.cluster.keys import Keys, Presence, decode_presence
from dspy_registry.writer.cluster.observer import Observer

_log = logging.getLogger("dspy_registry")


class Hosts(Observer):
    """`alive` has what each host says of itself, by its id. A host of another release may say it in another way."""

    def __init__(self, keys: Keys) -> None:
        super().__init__(keys.hosts)
        self.alive: dict[str, Presence] = {}

    async def take_all(self, items: Sequence[KeyValue]) -> None:
        """See `Observer.take_all`."""
        self.alive.clear()
        for item in items:
            self.take(item)

    def take(self, change: KeyValue) -> None:
        """See `Observer.take`."""
        host = change.key[len(self.prefix) :].decode("ascii", "replace")
        if change.value is None:
            self.alive.pop(host, None)
            return
        try:
            self.alive[host] = decode_presence(change.value)
        except msgspec.MsgspecError:
            _log.warning("host %s of the cluster is of another release: what it says of itself is not understood", host)
