"""Batches of usage as reporters send them, merged without a daemon; and waiting for one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from dspy_registry import RegistryWriter
from dspy_registry.registry_store.reports import Batch, read_batch
from dspy_registry.writer.client.pending_calls import Pending
from dspy_registry.writer.client.recorded_call import Call, Moment
from dspy_registry.writer.daemon.usage_merge import UsageMerger

MINUTE = 60_000
NOW = 1_800_000_000_000


def recorded(name: Any, duration_ms: Any, *rest: Any, **keywords: Any) -> Call:
    """A call as `record` queues it, given its arguments."""
    defaults = (True, None, 0, 0, None)
    later = {"error": None, "version": 0, "limit_ms": None, "began": None, "retry_after": None, **keywords}
    call: Any = (name, duration_ms, *rest, *defaults[len(rest) :], *later.values())
    return call  # type: ignore[no-any-return]


def moment(now: int = NOW) -> Moment:
    """Calls are taken from the queue at once."""
    return Moment(now, now, 0.0)


def batches(
    calls: Iterable[tuple[Any, ...]], *, reporter: bytes | None = None, number: int = 1, now: int = NOW, **keywords: Any
) -> list[Batch]:
    """What a reporter sends of these calls, given as the arguments of `record`, all of which end at `now`."""
    pending = Pending()
    for call in calls:
        pending.add(recorded(*call, **keywords), moment(now))
    return [read_batch(payload) for _, payload in pending.take(reporter or os.urandom(16), number)]


def merge(writer: RegistryWriter, sent: Iterable[Batch], *, merger: UsageMerger | None = None, now: int = NOW) -> int:
    """Merge batches as the daemon does; the revision afterwards."""
    merging = merger or UsageMerger()
    return writer.store.committer.commit(lambda draft: merging.stage(draft, sent, now))


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Raises AssertionError when it does not come true: a limit for what hangs, not a measure."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.01)
