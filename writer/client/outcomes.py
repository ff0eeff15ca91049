"""How calls of this process ended, until the daemon has been told. What it must know of a version is bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from dspy_registry.registry_store.circuit import FAILURES, NEITHER
from dspy_registry.registry_store.policy import LARGEST_WINDOW
from dspy_registry.registry_store.protocol import ReportedOutcome
from dspy_registry.writer.client.recorded_call import CheckedCall, Names

MOST_KEPT: Final = 4096
"""Outcomes kept while no daemon takes them: the oldest are dropped."""

_Key = tuple[Names, int]
_Ended = tuple[str, float, float, float]  # kind, began, ended, retry after


class Outcomes:
    """Outcomes by name and version. The last LARGEST_WINDOW of a version say all that a window can hold."""

    def __init__(self) -> None:
        self._by_version: dict[_Key, deque[_Ended]] = {}
        self._failed: set[_Key] = set()

    def add(self, name: Names, call: CheckedCall, now: float) -> None:
        """Keep a call. `now` is the moment of `call` on the boot-time clock."""
        if call.kind in NEITHER:
            return
        key = name, call.version
        ended = self._by_version.get(key)
        if ended is None:
            ended = self._by_version[key] = deque(maxlen=LARGEST_WINDOW)
        ended.append((call.kind, now - call.began_ago, now - call.ended_ago, call.retry_after))
        if call.kind in FAILURES:
            self._failed.add(key)

    def take(self, *, everything: bool) -> list[ReportedOutcome]:
        """All that is kept, else only that of the versions that had a failure: their successes belong to the share."""
        keys = list(self._by_version) if everything else list(self._failed)
        self._failed.clear()
        return [outcome for key in keys for outcome in _reported(key, self._by_version.pop(key))]


def _reported(key: _Key, ended: deque[_Ended]) -> Iterator[ReportedOutcome]:
    name, version = key
    names = (name,) if isinstance(name, str) else name
    for kind, began, end, retry_after in ended:
        yield ReportedOutcome(names, version, kind, began, end, retry_after)
