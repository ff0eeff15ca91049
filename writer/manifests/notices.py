"""Notices of changes in folders, by watchfiles."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection
from typing import Final

from watchfiles import Change, awatch

_STEP_MS: Final = 20
"""How often watchfiles asks the system for changes. A notice comes after one such time without a change."""

_LONGEST_MS: Final = 200
"""A notice comes after this time even while changes go on."""

_RETRY_SECONDS: Final = 30.0

_log = logging.getLogger("dspy_registry")


class Notices:
    """Calls `on_change(paths)` in the loop's thread when something in the folders changes.

    Folders inside them are not watched. `matters(path)` says which paths count. Name the folders with `keep`, and
    `close` it at the end.
    """

    def __init__(self, matters: Callable[[str], bool], on_change: Callable[[set[str]], None]) -> None:
        self._matters = matters
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._folders: list[str] = []
        self._failure = ""
        self._failed_at = 0.0

    @property
    def failure(self) -> str:
        """Why no notices come. Empty when they do."""
        return self._failure

    async def keep(self, folders: Collection[str]) -> bool:
        """Watch these folders and no others. True: the watch is new, and earlier changes were not noticed.

        After a failure no new watch begins for a while, unless the folders are different.
        """
        wanted = sorted(folders)
        if wanted == self._folders:
            if self._task is not None and not self._task.done():
                return False
            if self._failure and time.monotonic() < self._failed_at + _RETRY_SECONDS:
                return False
        await self.close()
        self._folders = wanted
        self._task = asyncio.create_task(self._watch(wanted))
        await asyncio.sleep(0)  # the task has added its watches before it waits for the first time
        return True

    def forget(self) -> None:
        """Begin a new watch at the next `keep`: a folder may have replaced another of the same name."""
        self._folders = []

    async def close(self) -> None:
        """Stop watching."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self, folders: list[str]) -> None:
        was, self._failure = self._failure, ""
        try:
            async for changes in awatch(
                *folders,
                watch_filter=self._is_noticed,
                debounce=_LONGEST_MS,
                step=_STEP_MS,
                recursive=False,
                ignore_permission_denied=True,
            ):
                self._on_change({path for _, path in changes})
        except FileNotFoundError:
            self._on_change(set())  # a folder is gone meanwhile: look again
        except Exception as error:
            self._failure, self._failed_at = f"{type(error).__name__}: {error}", time.monotonic()
            if was != self._failure:
                _log.warning("no notices of file changes, the folders are read at intervals instead: %s", self._failure)

    def _is_noticed(self, change: Change, path: str) -> bool:
        return self._matters(path)
