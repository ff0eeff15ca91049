"""Checking the registry now and then while the daemon runs, in a process beside it."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any, Final

from dspy_registry.registry_store.check.checker import check_command, violations_in
from dspy_registry.registry_store.check.inspection import Violation
from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.writer.daemon.apart import run_apart
from dspy_registry.writer.daemon.host import Host

_FIRST: Final = 60.0
"""Seconds after the start, or less where checks are closer together: a daemon that restarts often is checked too."""
_SHOWN: Final = 3

_log = logging.getLogger("dspy_registry")


class Checks:
    """A task of the daemon: `run` it once. `every` is in seconds, between the end of a check and the next one."""

    def __init__(self, folder: Path, every: float) -> None:
        self._folder = folder
        self._every = every
        self._is_running = False
        self._last_at: int | None = None
        self._seconds: float | None = None
        self._next_at: int | None = None
        self._violations: tuple[Violation, ...] = ()
        self._error = ""

    async def run(self) -> None:
        """Until cancelled."""
        pause = min(_FIRST, self._every)
        while True:
            self._next_at = int((time.time() + pause) * 1000)
            await asyncio.sleep(pause)
            self._next_at = None
            await self.check()
            pause = self._every

    async def check(self) -> None:
        """Once, now. Damage is logged."""
        began = time.monotonic()
        self._is_running = True
        try:
            ended = await run_apart(check_command(self._folder))
            self._take(tuple(violations_in(ended.status, ended.output, ended.errors)))
        except (RegistryError, OSError) as error:
            self._fail(f"the check could not be run: {error}")
        finally:
            self._is_running = False
        self._last_at = int(time.time() * 1000)
        self._seconds = round(time.monotonic() - began, 3)

    def _take(self, violations: tuple[Violation, ...]) -> None:
        self._violations = violations
        if violations:
            shown = "; ".join(map(str, violations[:_SHOWN]))
            more = ", …" if len(violations) > _SHOWN else ""
            self._fail(f"{len(violations)} found by the check: {shown}{more}")
        else:
            self._error = ""
            _log.info("the check found nothing wrong")

    def _fail(self, error: str) -> None:
        self._error = error
        _log.error("%s", error)

    def status(self) -> dict[str, Any]:
        """The section `check` of the status. Times are in milliseconds since the epoch; None: not yet, or not known."""
        return {
            "every": self._every,
            "is_running": self._is_running,
            "last_at": self._last_at,
            "seconds": self._seconds,
            "next_at": self._next_at,
            "violations": len(self._violations),
            "error": self._error,
        }


def attach_checks(host: Host, every: float) -> Checks:
    """Let the daemon check its registry every `every` seconds. The status has a section `check`."""
    checks = Checks(host.environment.folder, every)
    host.add_section("check", checks.status)
    host.add_task(checks.run)
    return checks
