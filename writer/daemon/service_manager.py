"""What the daemon tells the service manager that started it: the datagrams of sd_notify, to $NOTIFY_SOCKET."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

_log = logging.getLogger("dspy_registry")


class ServiceManager:
    """The service manager, if there is one. What cannot be sent is logged once, and harms nothing.

    `environment` is that of the process. `watchdog_seconds` is how long the manager waits for a sign of life; None: it
    waits for none of this process.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._has_failed = False
        self.watchdog_seconds = _watchdog_seconds(environment)

    def ready(self) -> None:
        """Clients can connect, or what was read again is in force."""
        self._tell("READY=1", f"MAINPID={os.getpid()}")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Meanwhile configuration is read again."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self.ready()

    def stopping(self) -> None:
        """The daemon takes no more requests."""
        self._tell("STOPPING=1")

    async def watch(self, is_well: Callable[[], bool]) -> None:
        """Give a sign of life in half of the time that the manager waits, as long as all is well. Until cancelled."""
        if self.watchdog_seconds is None:
            return
        while True:
            if is_well():
                self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_seconds / 2)

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._has_failed:
                _log.warning("the service manager cannot be told %s: %s", lines[0], error)
            self._has_failed = True


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """None too where the manager waits for another process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
