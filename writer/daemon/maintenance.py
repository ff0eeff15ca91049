"""What the daemon does once a second: it closes silent connections, frees dead readers' slots and checks its files."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.data_file import problem_of
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import RegistryError, StoreError
from dspy_registry.registry_store.paths import file_identity
from dspy_registry.writer.daemon.laggards import Laggards
from dspy_registry.writer.daemon.server import Server

_SECONDS: Final = 1.0
_REAP_EVERY: Final = 5  # rounds
# Looked at, never opened: closing lock.mdb anywhere in a process drops the locks that LMDB holds on it.
_FILES: Final = (layout.DATA_FILE, layout.REVISION_FILE, layout.WRITER_LOCK_FILE, layout.LOCK_FILE)

_log = logging.getLogger("dspy_registry")


class FileGuard:
    """The files of an open registry, as they were when this was made. Without them the daemon's writes are lost."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identities = {name: file_identity(folder / name) for name in _FILES}
        self._data_bytes = 0

    def __repr__(self) -> str:
        return f"FileGuard({str(self._folder)!r})"

    def check(self) -> None:
        """Raises StoreError naming a file that was removed, replaced or cut short."""
        for name, identity in self._identities.items():
            if file_identity(self._folder / name) != identity:
                raise StoreError(
                    f"{self._folder / name} was removed or replaced under the writer, so that what it writes is lost.",
                    remedy="Stop the writer before touching the registry's files.",
                )
        self._refuse_shorter()

    def _refuse_shorter(self) -> None:
        """LMDB never makes data.mdb shorter. To read what was cut off would end this process."""
        data = self._folder / layout.DATA_FILE
        size, before = data.stat().st_size, self._data_bytes
        self._data_bytes = size
        if size < before:
            raise problem_of(self._folder, f"was cut short under the writer: it had {before} bytes, and has {size}")


async def maintain(
    server: Server,
    environment: Environment,
    file_guard: FileGuard,
    laggards: Laggards,
    failed: Callable[[StoreError], None],
) -> None:
    """Run for as long as the daemon does. `failed` is called when the registry's files were taken away."""
    rounds = 0
    while True:
        await asyncio.sleep(_SECONDS)
        rounds += 1
        server.close_silent()
        try:
            file_guard.check()
            if rounds % _REAP_EVERY == 0:
                environment.reap()  # while dead readers have slots, the file grows
                laggards.look(*environment.reader_slots(), time.time())
        except StoreError as error:
            failed(error)
            return
        await _stay_reachable(server)


async def _stay_reachable(server: Server) -> None:
    """Listen again if somebody has removed the socket, taking it for a forgotten file."""
    if not server.is_reachable:
        try:
            await server.listen()
        except RegistryError as error:
            _log.warning("clients cannot connect: %s", error)
