"""Discovery at the daemon's start, and after each change of the packages in the watched environment."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.wording import counted, listed
from dspy_registry.writer.daemon.host import Host
from dspy_registry.writer.discovery.python_environment import Installed, import_folders, installed
from dspy_registry.writer.discovery.report import COMPLETING, DEFAULT_TIMEOUT, DiscoveryReport, discover
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.manifests.notices import Notices
from dspy_registry.writer.reconcile import Outcome, apply_discovery

_RESCAN_SECONDS: Final = 10.0  # between looks at the installed packages without a notice
_QUIET: Final = 1.5  # an installer takes seconds, and pauses
_PATIENCE: Final = 60.0
_PYTHON_SECONDS: Final = 30.0
_SHOWN: Final = 10  # names in one line
_RETRIES: Final = 3  # of a discovery with failures, though nothing has changed: imports may have been slow

_log = logging.getLogger("dspy_registry")


class DiscoveryWatch:
    """A task of the daemon. `run` it once."""

    def __init__(
        self, host: Host, packages: Sequence[str], python: str, timeout: float, then: Callable[[], None]
    ) -> None:
        self._host = host
        self._packages = tuple(packages)
        self._python = python
        self._timeout = timeout
        self._then = then
        self._notices = Notices(lambda path: not path.endswith("__pycache__"), self._noticed)
        self._wake = asyncio.Event()
        self._noticed_at = 0.0
        self._folders: tuple[str, ...] = ()
        self._seen: Installed | None = None
        self._retries = 0
        self._report = DiscoveryReport(python=python)
        self._outcome = Outcome()
        self._error = ""
        self._discovered_at = 0

    def __repr__(self) -> str:
        return f"DiscoveryWatch({self._python!r}, modules={len(self._report.modules)})"

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                try:
                    await self._look()
                except Exception as error:
                    self._fail(error)
                await self._sleep()
        finally:
            await self._notices.close()

    def status(self) -> dict[str, Any]:
        """For the daemon's status. `discovered_at` is in milliseconds since the epoch, None before the first time."""
        return {
            "python": self._report.python,
            "dspy_version": self._report.dspy_version,
            "modules": len(self._report.modules),
            "failures": [msgspec.structs.asdict(failure) for failure in self._report.failures],
            "incomplete": list(self._report.incomplete),
            "refused": self._outcome.refused,
            "error": self._error or None,
            "revision": self._outcome.revision,
            "discovered_at": self._discovered_at or None,
        }

    def _noticed(self, paths: set[str]) -> None:
        self._noticed_at = asyncio.get_running_loop().time()
        self._wake.set()

    async def _sleep(self) -> None:
        """Wait for a notice and then for quiet, or until it is time to look without a notice."""
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(_RESCAN_SECONDS, self._wake.set)
        await self._wake.wait()
        alarm.cancel()
        self._wake.clear()
        patience = loop.time() + _PATIENCE
        while (now := loop.time()) < min(self._noticed_at + _QUIET, patience):
            await asyncio.sleep(self._noticed_at + _QUIET - now)

    async def _look(self) -> None:
        """Discover if the installed packages have changed. Changes during a discovery are seen the next time."""
        now = await asyncio.to_thread(installed, self._python, self._folders)
        if now == self._seen and not self._error and not self._retries:
            await self._notices.keep(self._folders)
            return
        self._retries = self._retries - 1 if now == self._seen else _RETRIES
        self._folders = await asyncio.to_thread(import_folders, self._python, _PYTHON_SECONDS)
        await self._notices.keep(self._folders)
        seen = await asyncio.to_thread(installed, self._python, self._folders)
        report = await asyncio.to_thread(discover, self._packages, python=self._python, timeout=self._timeout)
        done = await self._host.submit(lambda draft: _stage(draft, report))
        self._seen, self._error = seen, ""
        self._retries = self._retries if report.failures else 0
        self._report, self._outcome = report, done.result
        self._outcome.revision = done.revision
        self._discovered_at = time.time_ns() // 1_000_000
        self._tell()
        self._then()

    def _tell(self) -> None:
        report, outcome = self._report, self._outcome
        for failure in report.failures:
            _log.warning("discovery: %s: %s", failure.package, failure.reason)
        if report.incomplete:
            _log.info("discovery: nothing is known of what these can do: %s. %s", shown(report.incomplete), COMPLETING)
        for problem in outcome.refused:
            _log.warning("discovery: %s", problem)
        _log.info(
            "discovery in %s: %s, %d declared, %d withdrawn, as of revision %d",
            *(
                report.python,
                counted(len(report.modules), "module"),
                len(outcome.declared),
                len(outcome.withdrawn),
                outcome.revision,
            ),
        )

    def _fail(self, error: Exception) -> None:
        if str(error) != self._error:
            self._error = str(error) or type(error).__name__
            _log.error("discovery failed, what was found before stays: %s", self._error)


def shown(names: Sequence[str]) -> str:
    """Some of the names, and how many more there are."""
    return listed(names, _SHOWN)


def _stage(draft: Draft, report: DiscoveryReport) -> Outcome:
    outcome = Outcome()
    apply_discovery(draft, report, outcome)
    return outcome


def attach_discovery(
    host: Host,
    *,
    packages: Sequence[str] = (),
    python: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    then: Callable[[], None] = lambda: None,
) -> DiscoveryWatch:
    """Let the daemon discover modules now, and whenever packages are installed or removed. Call it from an extension.

    The arguments are those of `discover`; `timeout` None is its default. `then` is called in the loop's thread
    after each discovery. The status has a section `discovery`. A discovery that fails changes nothing.
    """
    interpreter = os.fspath(python) if python is not None else sys.executable
    limit = DEFAULT_TIMEOUT if timeout is None else timeout
    watch = DiscoveryWatch(host, packages, interpreter, limit, then)
    host.add_section("discovery", watch.status)
    host.add_task(watch.run)
    return watch
