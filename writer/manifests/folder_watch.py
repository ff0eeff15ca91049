"""Keeping the registry in line with a folder of manifests, for as long as the daemon runs.

    notice -> wait until it is quiet -> read the whole folder -> one commit -> report

A change of the tree is over when nothing has happened for a moment, no file is open for writing, and git is not at
work in the checkout. The moment is longer when many files change one after the other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any, Final

from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.wording import counted
from dspy_registry.writer.daemon.host import Host
from dspy_registry.writer.manifests.declarations import ManifestError
from dspy_registry.writer.manifests.declared_aliases import are_disturbed
from dspy_registry.writer.manifests.folder import ManifestFolder, Reading
from dspy_registry.writer.manifests.folder_scan import Places
from dspy_registry.writer.manifests.links import checkout_locks
from dspy_registry.writer.manifests.notices import Notices
from dspy_registry.writer.manifests.off_loop import off_loop
from dspy_registry.writer.manifests.stage import Loaded, stage_tree
from dspy_registry.writer.manifests.standing import Standing, standing_of

RESCAN_SECONDS: Final = 2.0
"""Seconds between readings without a notice: some file systems send no notices of changes."""

_UNNOTICED_SECONDS: Final = 0.5  # the same, while no notices come
_BUSY_SECONDS: Final = (0.02, 1.0)  # the same, while a file is being written: the first pause, and the longest
_LOCK_SECONDS: Final = 0.02
_QUIET: Final = 0.03
_QUIET_LONGER: Final = 0.25
_FEW: Final = 8  # paths
_PATIENCE: Final = 2.0
_PATIENCE_WITH_MANY: Final = 30.0

_log = logging.getLogger("dspy_registry")


class Burst:
    """Changes that seem to belong together. Times are the loop's, in seconds."""

    def __init__(self, now: float) -> None:
        self.first = self.last = now
        self.paths: set[str] = set()
        self.is_slow = False

    @property
    def is_large(self) -> bool:
        """Whether these are more files than a person saves by hand."""
        return len(self.paths) > _FEW

    @property
    def quiet_at(self) -> float:
        """When the burst is over, if nothing else changes."""
        return self.last + (_QUIET_LONGER if self.is_large or self.is_slow else _QUIET)

    def deadline(self, *, is_checkout: bool) -> float:
        """When the folder is read although changes go on."""
        return self.first + (_PATIENCE_WITH_MANY if self.is_large or is_checkout else _PATIENCE)


class ManifestWatch:
    """A task of the daemon. `run` it once. Call `look_again` when modules that manifests refer to may have changed."""

    def __init__(self, host: Host, folder: Path) -> None:
        self._host = host
        self._folder = ManifestFolder(folder)
        self._places = Places(frozenset(), frozenset(), frozenset(), frozenset())
        self._notices = Notices(self._matters, self._noticed)
        self._wake = asyncio.Event()
        self._burst: Burst | None = None
        self._stale_locks: set[tuple[Path, int]] = set()
        self._is_due = True  # something was read or requested that is not committed
        self._busy = 0.0
        self._files: frozenset[str] = frozenset()
        self._loaded = Loaded((), frozenset(), (), False)
        self._standing = Standing()
        self._stood_at = -1  # the revision of that
        self._revision = 0
        self._followed = 0
        self._loaded_at = 0
        self._failure = ""

    def __repr__(self) -> str:
        return f"ManifestWatch({str(self._folder.root)!r}, files={len(self._files)}, errors={len(self._loaded.errors)})"

    async def run(self) -> None:
        """Until cancelled."""
        self._burst = Burst(self._now())
        try:
            while True:
                try:
                    await self._look()
                except Exception as error:
                    self._fail(error)
                await self._sleep()
        finally:
            self._folder.close()
            await self._notices.close()

    def look_again(self) -> None:
        """Stage what the folder declares again, even if it has not changed. In the loop's thread."""
        self._is_due = True
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """For the daemon's status. `loaded_at` is in milliseconds since the epoch, None before the first time.

        `error` says why the folder as a whole cannot be loaded; "": it can. Then nothing new comes in force.
        `overrides` and `away` (see `Standing`) are of the last look at the folder, a few seconds ago at most.
        """
        return {
            "directory": str(self._folder.root),
            "files": len(self._files),
            "modules": len(self._loaded.modules),
            "overrides": list(self._standing.overrides),
            "away": list(self._standing.away),
            "errors": [plain_error(error) for error in self._loaded.errors],
            "error": self._failure,
            "revision": self._revision,
            "loaded_at": self._loaded_at or None,
        }

    # Noticing

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _matters(self, path: str) -> bool:
        return self._places.matter(path)

    def _noticed(self, paths: set[str]) -> None:
        if self._burst is None:
            self._burst = Burst(self._now())
        self._burst.last = self._now()
        self._burst.paths |= paths
        if not paths.isdisjoint(self._places.folders):
            self._notices.forget()  # a folder itself came or went: another may have its name and inode
        self._wake.set()

    async def _sleep(self) -> None:
        """Wait for a notice, or until it is time to read without one."""
        seconds = self._busy or (_UNNOTICED_SECONDS if self._notices.failure else RESCAN_SECONDS)
        alarm = asyncio.get_running_loop().call_later(seconds, self._wake.set)
        await self._wake.wait()
        alarm.cancel()
        self._wake.clear()

    async def _watch(self, places: Places) -> bool:
        """Watch these places. True: the watch is new, so that earlier changes may have been missed."""
        if places.watched != self._places.watched:
            self._notices.forget()
        self._places = places
        return await self._notices.keep([path for path, _, _ in places.watched])

    # Reading

    async def _stable_reading(self) -> Reading:
        """The folder once a change of it is over, or has taken too long."""
        while True:
            await self._quiet()
            burst = self._burst
            last = burst.last if burst else 0.0
            reading = await off_loop(self._folder.read)
            self._is_due = self._is_due or reading.is_new
            is_watched_anew = await self._watch(reading.places)
            if burst is None and not reading.is_new and not reading.is_busy:
                return reading
            burst = self._burst = self._burst or Burst(self._now())
            if reading.is_new and not burst.paths:
                burst.last = self._now()  # no notice comes for these changes: over when two readings are equal
            burst.is_slow = burst.is_slow or self._is_doubtful(reading, burst)
            is_over = burst.last == last and self._now() >= burst.quiet_at
            is_over = is_over and not (is_watched_anew or reading.is_busy or self._locks())
            if is_over or self._now() >= burst.deadline(is_checkout=bool(self._locks())):
                self._burst = None
                self._note_busy(reading)
                return reading
            if reading.is_busy:
                await asyncio.sleep(_BUSY_SECONDS[0])

    def _is_doubtful(self, reading: Reading, burst: Burst) -> bool:
        """Whether more changes are likely: no notice came, or a file is gone. Some editors delete a file to save it."""
        is_first = not self._loaded_at
        has_gone = not self._files <= reading.tree.files.keys()
        return not is_first and (has_gone or (reading.is_new and not burst.paths))

    def _note_busy(self, reading: Reading) -> None:
        shortest, longest = _BUSY_SECONDS
        self._busy = min(self._busy * 2 or shortest, longest) if reading.is_busy else 0.0

    async def _quiet(self) -> None:
        while self._burst is not None:
            locks = self._locks()
            now, deadline = self._now(), self._burst.deadline(is_checkout=bool(locks))
            if now >= deadline:
                self._stale_locks |= locks
                return
            if now >= self._burst.quiet_at and not locks:
                return
            await asyncio.sleep(min(max(self._burst.quiet_at - now, _LOCK_SECONDS), deadline - now))

    def _locks(self) -> set[tuple[Path, int]]:
        """Locks of git at work, without those that a dead git left behind."""
        found = set()
        for lock in checkout_locks(self._places.checkouts):
            try:
                found.add((lock, lock.stat().st_mtime_ns))
            except OSError:
                continue
        return found - self._stale_locks

    # Committing

    async def _look(self) -> None:
        reading = await self._stable_reading()
        self._is_due = self._is_due or self._is_disturbed()
        if self._is_due:
            await self._commit(reading)
        await self._compare()
        self._failure = ""

    async def _compare(self) -> None:
        """Find out what clients have overridden or unregistered, if something was committed since."""
        revision, names, environment = self._host.revision, self._loaded.modules, self._host.environment
        if revision == self._stood_at:
            return

        def look() -> Standing:
            with environment.reading() as txn:
                return standing_of(txn, environment.dbs, names)

        before, self._standing = self._standing, await off_loop(look)
        self._stood_at = revision
        for name in sorted(set(self._standing.overrides).difference(before.overrides)):
            _log.warning("%s: a client's record overrides the manifest; `dspy-registry release` ends that", name)
        for name in sorted(set(self._standing.away).difference(before.away)):
            _log.warning("%s: unregistered, though a manifest declares it; the next change brings it back", name)

    def _is_disturbed(self) -> bool:
        """Whether commits of clients or discovery affect what manifests declare."""
        revision = self._host.revision
        if self._loaded.needs_registry:
            return revision != self._revision
        declared = self._loaded.aliases, self._loaded.labels
        found = are_disturbed(self._host.environment, *declared, self._followed, revision)
        self._followed = revision
        return found

    async def _commit(self, reading: Reading) -> None:
        tree = reading.tree
        with self._host.reloading():
            done = await self._host.submit(lambda draft: stage_tree(draft, tree))
        self._is_due = False
        before, self._loaded = self._loaded.errors, done.result
        self._files, self._revision = frozenset(tree.files), done.revision
        self._followed = done.revision - 1  # works after this one may have changed something in the same revision
        self._loaded_at = time.time_ns() // 1_000_000
        self._report(before)

    def _fail(self, error: Exception) -> None:
        """Everything stays as it is, and is tried again. A repeated failure is logged once, and is in the status."""
        failure = f"manifests cannot be loaded: {str(error) or type(error).__name__}"
        if failure != self._failure:
            self._failure = failure
            is_told = isinstance(error, RegistryError)  # it names cause and remedy; of any other, the place helps
            _log.error("%s The daemon tries again.", failure, exc_info=None if is_told else error)

    def _report(self, before: tuple[ManifestError, ...]) -> None:
        errors = self._loaded.errors
        for error in errors:
            if error not in before:
                _log.error("manifest %s", error)
        for file in sorted({error.file for error in before} - {error.file for error in errors}):
            _log.info("manifest %s: no errors now", file or self._folder.root)
        _log.info(
            "manifests in %s: %s, %s, %s, as of revision %d",
            self._folder.root,
            counted(len(self._files), "file"),
            counted(len(self._loaded.modules), "module"),
            counted(len(errors), "error"),
            self._revision,
        )


def plain_error(error: ManifestError) -> dict[str, Any]:
    """The error as plain values for JSON. An unknown line is None."""
    return {"file": error.file, "line": error.line or None, "field": error.field, "message": error.message}
