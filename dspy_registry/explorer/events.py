"""Server-sent events: one follower of the registry for all browsers that listen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import msgspec

from dspy_registry.cli.console import encode_json
from dspy_registry.explorer.changes import plain
from dspy_registry.readers.registry import Registry
from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.health_file import HealthEntry

POLL: Final = 0.03
"""Seconds between two looks at the revision word. A change is told within a few of them."""
_HEALTH_POLL: Final = 0.1
_RETRY: Final = 1.0
_WAITING: Final = 256
"""Events that a slow listener may leave unread. One more, and it is told to load everything."""
_BEAT: Final = 15.0
_GLANCE: Final = 0.25
"""Seconds after which a stream sees that the server is to end."""

_CLOCKS: Final = 0.5

_log = logging.getLogger("dspy_registry")

Event = tuple[str, str, bytes]
"""Its id ("": none), its kind, its JSON on one line."""


class Events:
    """Belongs to the server's loop. `is_ending` says that streams are to end, for the server waits for them."""

    def __init__(self, registry: Registry, is_ending: Callable[[], bool]) -> None:
        self._registry = registry
        self._is_ending = is_ending
        self._listeners: set[asyncio.Queue[Event]] = set()

    async def run(self) -> None:
        """Follow changes and health until cancelled."""
        await asyncio.gather(self._follow_changes(), self._follow_health())

    async def stream(self, since: int | None) -> AsyncIterator[bytes]:
        """The events from now on as the bytes of an answer; first the changes after revision `since`, unless None."""
        listener: asyncio.Queue[Event] = asyncio.Queue(_WAITING)
        self._listeners.add(listener)
        try:
            revision = await asyncio.to_thread(lambda: self._registry.revision)
            yield b"retry: 1000\n\n" + encoded(("", "hello", encode_json({"revision": revision})))
            if since is not None and since != revision:
                for event in await asyncio.to_thread(self._missed, since):
                    yield encoded(event)
            silent = 0.0
            while not self._is_ending():
                try:
                    yield encoded(await asyncio.wait_for(listener.get(), _GLANCE))
                    silent = 0.0
                except asyncio.TimeoutError:
                    silent += _GLANCE
                    if silent >= _BEAT:
                        yield b": still here\n\n"
                        silent = 0.0
        finally:
            self._listeners.discard(listener)

    def _missed(self, since: int) -> list[Event]:
        with self._registry.snapshot() as snapshot:
            return [_change_event(plain(change)) for change in snapshot.changes_since(since)[-_WAITING:]]

    async def _follow_changes(self) -> None:
        while True:
            try:
                async for change in self._registry.watch_async(poll=POLL):
                    self._tell(_change_event(plain(change)))
            except RegistryError as error:
                _log.debug("changes cannot be followed: %s", error)
                await asyncio.sleep(_RETRY)

    async def _follow_health(self) -> None:
        known = await asyncio.to_thread(self._registry.health)
        while True:
            await asyncio.sleep(_HEALTH_POLL)
            if not self._listeners:
                continue
            found = await asyncio.to_thread(self._registry.health)
            if not is_same(known, found):
                known = found
                self._tell(("", "health", encode_json(found)))

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener.put_nowait(event)
            except asyncio.QueueFull:
                while not listener.empty():
                    listener.get_nowait()
                with contextlib.suppress(asyncio.QueueFull):
                    listener.put_nowait(("", "reload", b"{}"))


def is_same(before: Sequence[HealthEntry], after: Sequence[HealthEntry]) -> bool:
    """Whether two lists tell the same. Deadlines are computed from two clocks, so they vary a little."""
    if len(before) != len(after):
        return False
    return all(
        abs(old.until - new.until) < _CLOCKS and msgspec.structs.replace(old, until=new.until) == new
        for old, new in zip(before, after, strict=True)
    )


def _change_event(change: dict[str, Any]) -> Event:
    return str(change["revision"]), "change", encode_json(change)


def encoded(event: Event) -> bytes:
    """An event in the form of `text/event-stream`."""
    number, kind, data = event
    head = f"id: {number}\n" if number else ""
    return f"{head}event: {kind}\n".encode() + b"data: " + data + b"\n\n"
