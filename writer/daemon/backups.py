"""Backups that the daemon makes now and then, in a process beside it. Each is checked, and the oldest are removed.

A backup counts when the check is content with it. Only then an older one is removed, so that those kept are sound.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import sys
import time
from calendar import timegm
from pathlib import Path
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.backup import Backup
from dspy_registry.registry_store.check.checker import check_command, violations_in
from dspy_registry.registry_store.disk import explained, make_folder_durably, sync
from dspy_registry.registry_store.errors import RegistryError, StoreError
from dspy_registry.registry_store.layout import DATA_FILE
from dspy_registry.writer.daemon.apart import run_apart
from dspy_registry.writer.daemon.host import Host

_FORM: Final = "%Y%m%dT%H%M%SZ"
_NAME: Final = re.compile(r"\d{8}T\d{6}Z")
_UNSOUND: Final = ".unsound"
_AGAIN: Final = 300.0
"""Seconds after a backup that failed, or less where backups are closer together."""

_log = logging.getLogger("dspy_registry")
_decode = msgspec.json.Decoder(Backup).decode


class Backups:
    """A task of the daemon: `run` it once. `every` is in seconds. `keep` backups stay in `place`, the newest.

    A backup is a folder there whose name is its time in UTC. Other folders are left alone.
    """

    def __init__(self, folder: Path, place: Path, every: float, keep: int) -> None:
        self._folder = folder
        self._place = place
        self._every = every
        self._keep = keep
        self._is_running = False
        self._next_at: int | None = None
        self._last: Backup | None = None
        self._error = ""

    async def run(self) -> None:
        """Until cancelled. The first is due when the newest one in the folder is as old as that."""
        pause = due_in(time.time(), _newest_at(self._place), self._every)
        while True:
            self._next_at = int((time.time() + pause) * 1000)
            await asyncio.sleep(pause)
            self._next_at = None
            await self.make()
            pause = min(self._every, _AGAIN) if self._error else self._every

    async def make(self) -> None:
        """One, now. What goes wrong is logged, and is in the status until one is made."""
        self._is_running = True
        try:
            with explained(self._place):
                self._last = await self._made()
                self._rotate()
        except RegistryError as error:
            self._error = str(error)
            _log.error("no backup was made: %s", error)
        else:
            self._error = ""
            _log.info("backup %s holds revision %d", self._last.path, self._last.revision)
        finally:
            self._is_running = False

    async def _made(self) -> Backup:
        if not self._place.is_dir():
            make_folder_durably(self._place, 0o700)
        self._sweep()
        target = self._place / time.strftime(_FORM, time.gmtime())
        ended = await run_apart(
            [sys.executable, "-m", "dspy_registry.registry_store.backup", str(target), str(self._folder)]
        )
        if ended.status not in (0, 1) or not ended.output:  # an interpreter that fails ends with 1, too
            why = ended.errors.decode("utf-8", "replace").strip() or f"its process ended with {ended.status}"
            raise StoreError(why, remedy="")
        await self._refuse_unsound(target)
        return self._complete(_decode(ended.output), target)

    def _complete(self, made: Backup, target: Path) -> Backup:
        """A backup that lacks acknowledged changes is kept, and takes no other one's place."""
        if made.missing is None:
            return made
        kept = _set_aside(target)
        raise StoreError(f"{kept} is not complete: {made.missing}", remedy="The complete backups made before are kept.")

    async def _refuse_unsound(self, target: Path) -> None:
        ended = await run_apart(check_command(target))
        violations = list(violations_in(ended.status, ended.output, ended.errors))
        if violations:
            kept = _set_aside(target)
            raise StoreError(
                f"{kept} is not sound, because the registry is not: {violations[0]}.",
                remedy="Run `dspy-registry check`. The sound backups made before are kept.",
            )

    def _rotate(self) -> None:
        for path in made_in(self._place)[: -self._keep]:
            shutil.rmtree(path)
        sync(self._place)

    def _sweep(self) -> None:
        """Remove what killed backups left, and all but the newest of those that were not sound."""
        left = [path for path in self._place.iterdir() if _NAME.fullmatch(path.name) and not _is_complete(path)]
        unsound = sorted(path for path in self._place.iterdir() if _NAME.fullmatch(path.name.removesuffix(_UNSOUND)))
        unsound = [path for path in unsound if path.name.endswith(_UNSOUND)]
        for path in (*left, *unsound[:-1]):
            shutil.rmtree(path, ignore_errors=True)

    def status(self) -> dict[str, Any]:
        """The section `backups` of the status. Times are in milliseconds since the epoch; None: not yet."""
        kept = made_in(self._place) if self._place.is_dir() else []
        newest = _time_of(kept[-1]) if kept else None
        return {
            "folder": str(self._place),
            "every": self._every,
            "keep": self._keep,
            "kept": len(kept),
            "is_running": self._is_running,
            "last_at": None if newest is None else int(newest * 1000),
            "last_revision": None if self._last is None else self._last.revision,
            "next_at": self._next_at,
            "error": self._error,
        }


def _set_aside(target: Path) -> Path:
    kept = target.with_name(f"{target.name}{_UNSOUND}")
    target.rename(kept)
    return kept


def due_in(now: float, newest: float | None, every: float) -> float:
    """Seconds until the next backup. `newest` is the time of the last one; None: there is none. 0.0: it is due now."""
    if newest is None or newest > now:
        return 0.0
    return max(0.0, newest + every - now)


def made_in(place: Path) -> list[Path]:
    """The complete backups in a folder, the oldest first."""
    return sorted(path for path in place.iterdir() if _NAME.fullmatch(path.name) and _is_complete(path))


def _is_complete(path: Path) -> bool:
    return (path / DATA_FILE).exists()  # it is moved into its place last


def _newest_at(place: Path) -> float | None:
    kept = made_in(place) if place.is_dir() else []
    return _time_of(kept[-1]) if kept else None


def _time_of(path: Path) -> float:
    return float(timegm(time.strptime(path.name, _FORM)))


def attach_backups(host: Host, place: Path, every: float, keep: int) -> Backups:
    """Let the daemon back up every `every` seconds and keep the last `keep`. The status has a section `backups`."""
    backups = Backups(host.environment.folder, place, every, keep)
    host.add_section("backups", backups.status)
    host.add_task(backups.run)
    return backups
