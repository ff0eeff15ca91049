"""What the pages and their JSON share: the open registry, what is watched beside it, and the facts of a page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from dspy_registry.explorer import ask, changes, one_module
from dspy_registry.explorer.concurrency import limits_of_module
from dspy_registry.explorer.events import Events
from dspy_registry.explorer.filters import PAGE, Asked
from dspy_registry.explorer.ranks import Ranks
from dspy_registry.explorer.rows import rows
from dspy_registry.explorer.strip import strip
from dspy_registry.explorer.watched import Watched
from dspy_registry.readers.registry import Registry
from dspy_registry.writer.client.reporter import UsageReporter

_FLUSH: Final = 5.0


class Site:
    """One registry's explorer. Threads may share it. `shown_folder` goes into commands; None: the default registry.

    `is_ending` says that the server is told to stop.
    """

    def __init__(
        self,
        folder: Path,
        *,
        token: str | None = None,
        shown_folder: str | None = None,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder = folder
        self.token = token
        self.shown_folder = shown_folder
        self.registry = Registry(folder)
        self.reporter = UsageReporter(folder)
        self.watched = Watched(folder)
        self.events = Events(self.registry, is_ending)
        self._ranks = Ranks(self.registry)

    def __repr__(self) -> str:
        return f"Site({str(self.folder)!r})"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the server runs. At the end, calls that were reported are sent."""
        await asyncio.to_thread(self._start)
        following = asyncio.create_task(self.events.run())
        try:
            yield
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            await asyncio.to_thread(self._stop)

    def _start(self) -> None:
        self.watched.start()
        self._ranks.start()

    def _stop(self) -> None:
        self._ranks.stop()
        self.watched.stop()
        self.reporter.close(_FLUSH)
        self.registry.close()

    # Facts, as JSON has them

    def strip(self) -> dict[str, Any]:
        """The strip of every page."""
        health = [msgspec.structs.asdict(entry) for entry in self.registry.health()]
        return strip(self.watched.facts, self.registry.revision, self.registry.committed_at, health)

    def modules(self, asked: Asked) -> dict[str, Any]:
        """A page of modules, most used first. Raises InvalidArgumentError."""
        arguments = asked.arguments()
        wanted = asked.q.strip().casefold()
        question = (wanted, *sorted(arguments.items()))
        with self.registry.snapshot() as snapshot:

            def find() -> tuple[str, ...]:
                found = snapshot.find(**arguments)
                return tuple(name for name in found if wanted in name.casefold()) if wanted else found

            names = self._ranks.ordered(snapshot.revision, question, find)
            pages = max(1, -(-len(names) // PAGE))
            page = min(asked.page, pages)
            start = (page - 1) * PAGE
            return {
                "revision": snapshot.revision,
                "total": len(names),
                "page": page,
                "pages": pages,
                "modules": rows(snapshot, list(names[start : start + PAGE]), self.registry.health()),
                "unregistered": [] if question != ("",) else self._ranks.unregistered(snapshot.__contains__),
                "calls_lost": snapshot.calls_lost(),
            }

    def module(self, name: str) -> dict[str, Any]:
        """One module. Raises UnknownModuleError, AmbiguousNameError."""
        with self.registry.snapshot() as snapshot:
            found = one_module.one_module(snapshot, name, self.shown_folder)
            revision = snapshot.revision
        health = [msgspec.structs.asdict(each) for each in self.registry.health() if each.name == found["name"]]
        limits = limits_of_module(self.registry, found["name"]) if found["registered"] else []
        return {"at_revision": revision, **found, "health": health, "concurrency": limits}

    def changes(self, count: int = changes.SHOWN) -> dict[str, Any]:
        """The newest changes, newest first."""
        with self.registry.snapshot() as snapshot:
            return {"revision": snapshot.revision, "changes": changes.newest(snapshot, count)}

    def route(self, question: ask.Question) -> dict[str, Any]:
        """The decision. Raises InvalidArgumentError, UnknownModuleError, AmbiguousNameError."""
        return ask.answer(self.registry, question, self.shown_folder)

    def store(self) -> dict[str, Any]:
        """Readers, snapshots and the data file, as they were seen last."""
        facts = self.watched.facts
        growth = [sample._asdict() for sample in self.watched.growth]
        return {**facts, "growth": growth}
