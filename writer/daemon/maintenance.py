"""What the daemon sees to from time to time: silent clients, dead readers, and the files it stands on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import RegistryError, StoreError
from dspy_registry.writer.daemon.file_guard import FileGuard
from dspy_registry.writer.daemon.server import Server

_SECONDS: Final = 1.0
_REAP_EVERY: Final = 5  # rounds

_log = logging.getLogger("dspy_registry")


async def upkeep(
    server: Server, environment: Environment, file_guard: FileGuard, failed: Callable[[StoreError], None]
) -> None:
    """See to everything again and again. `failed` is called when the registry's files were taken away."""
    rounds = 0
    while True:
        await asyncio.sleep(_SECONDS)
        rounds += 1
        server.close_silent()
        if rounds % _REAP_EVERY == 0:
            reap(environment)
        try:
            file_guard.check()
        except StoreError as error:
            failed(error)
            return
        await _stay_reachable(server)


def reap(environment: Environment) -> None:
    """Free the slots of readers that died: while they are taken, the file grows."""
    with environment.gate:
        environment.open()
        environment.lmdb.reader_check()


async def _stay_reachable(server: Server) -> None:
    """Some clean up sockets that look forgotten."""
    if not server.is_reachable:
        try:
            await server.listen()
        except RegistryError as error:
            _log.warning("clients cannot connect: %s", error)
