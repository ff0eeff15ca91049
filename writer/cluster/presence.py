"""A host says every second that it is alive. So no watch is ever silent for long, and every host knows the others."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.writer.cluster.engine import Engine, LeaseGoneError
from dspy_registry.writer.cluster.keys import Keys, Presence, encode_presence
from dspy_registry.writer.cluster.mirror import Mirror

PERIOD: Final = 1.0
PRESENCE_SECONDS: Final = 10  # a host that says nothing for about so long is gone
_BEATS_OF_A_LEASE: Final = 3
_TOLD_AFTER: Final = 3  # beats that fail one after the other

_log = logging.getLogger("dspy_registry")


@cache
def own_release() -> str:
    """The release of this package; "": it is not installed."""
    try:
        return version("dspy-module-registry")
    except PackageNotFoundError:
        return ""


class Beacon:
    """Puts this host's presence. Belongs to the daemon's loop. `error`: why the last beats failed; "": they did not."""

    def __init__(self, engine: Engine, keys: Keys, mirror: Mirror) -> None:
        self._engine = engine
        self._keys = keys
        self._mirror = mirror
        self._lease = 0
        self.error = ""

    async def run(self) -> None:
        """Until cancelled."""
        beats = failed = 0
        while True:
            try:
                await self._beat(beats)
                self.error, failed = "", 0
            except LeaseGoneError:
                self._lease = 0
            except RegistryError as error:
                failed += 1
                if failed == _TOLD_AFTER:
                    _log.warning("this host cannot say that it is alive, and tries again: %s", error.message)
                    self.error = error.message
            beats += 1
            await asyncio.sleep(PERIOD)

    async def _beat(self, beats: int) -> None:
        if self._lease == 0:
            self._lease = await self._engine.lease(PRESENCE_SECONDS)
        elif beats % _BEATS_OF_A_LEASE == 0:
            await self._engine.keep_lease(self._lease)
        here = Presence(socket.gethostname(), own_release(), os.getpid(), self._mirror.applied)
        value, key = encode_presence(here), self._keys.presence
        await self._engine.transact({}, {key: value}, leased={key: self._lease})

    async def end(self) -> None:
        """Take the presence away at once, also one that an earlier daemon of this host left."""
        try:
            if self._lease:
                await self._engine.end_lease(self._lease)
        except LeaseGoneError:  # and its keys with it
            return
        await self._engine.transact({}, {}, removed=(self._keys.presence,))
