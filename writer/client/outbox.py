"""A reporter's batches that no daemon has yet, and its connection for them."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from dspy_registry.registry_store.data_file import has_revision_file
from dspy_registry.registry_store.errors import RegistryError, StorePermissionError, WriterTimeoutError
from dspy_registry.writer.client.report_link import ReportLink
from dspy_registry.writer.client.rounds import Sent

NO_REGISTRY: Final = "There is no registry in it. Name another folder, or start its daemon: until then calls are kept."
MAY_NOT_REPORT: Final = "Report as the daemon's user, or let the daemon admit a group (`serve --report-group NAME`)."

Take: TypeAlias = Callable[[bytes, int], list[tuple[int, bytes]]]
"""Gives what is pending as numbered batches of the reporter with this id, the first one with this number."""

_log = logging.getLogger("dspy_registry")


class Outbox:
    """Sends batches in order, for one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._id = os.urandom(16)
        self._number = 0
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._link = ReportLink(folder)
        self._has_told = False

    def send(self, take: Take, timeout: float) -> Sent:
        """Send all batches. A batch keeps its number until it is delivered, so that it counts once.

        Only after the batches of an earlier round are new ones made, so those that wait are bounded. The daemon has
        `timeout` seconds to answer each.
        """
        sent = self._send_made(timeout)
        if sent is not Sent.ALL:
            return sent
        self._unsent.extend(take(self._id, self._number + 1))
        if self._unsent:
            self._number = self._unsent[-1][0]
        return self._send_made(timeout)

    def close(self) -> None:
        """End the connection, if there is one. The next batch opens another."""
        self._link.close()

    def _send_made(self, timeout: float) -> Sent:
        while self._unsent:
            try:
                refused = self._link.send(self._unsent[0][1], timeout)
            except RegistryError as error:
                self._tell(error)
                return Sent.NOT_IN_TIME if isinstance(error, WriterTimeoutError) else Sent.REFUSED
            if refused is not None:
                _log.warning("usage statistics were refused and are dropped: %s", refused)
            self._unsent.popleft()
        return Sent.ALL

    def _tell(self, error: RegistryError) -> None:
        """What may never change by waiting is told once. A daemon that is away comes back."""
        remedy = MAY_NOT_REPORT if isinstance(error, StorePermissionError) else ""
        if not remedy and not has_revision_file(self._folder):
            remedy = NO_REGISTRY
        if remedy and not self._has_told:
            self._has_told = True
            _log.warning("usage statistics are not taken: %s %s", error.message, remedy)
        else:
            _log.debug("usage statistics wait for the writer daemon: %s", error)
