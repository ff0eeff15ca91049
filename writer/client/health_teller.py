"""Telling the daemon how calls ended: failures at once, everything else with the next batch.

While no daemon takes it, the process counts these calls itself, by the same rules.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

from dspy_registry.registry_store.circuit import Outcome
from dspy_registry.registry_store.errors import RegistryError, WriterTimeoutError
from dspy_registry.registry_store.host_health import HostHealth, ToldOutcome
from dspy_registry.registry_store.protocol import ReportedOutcome
from dspy_registry.writer.client.outcomes import MOST_KEPT, Outcomes
from dspy_registry.writer.client.report_link import ReportLink

SENDS_PER_SECOND: Final = 100.0
SENDS_AT_ONCE: Final = 20
"""A process may send this often without a pause. In the long run it may send SENDS_PER_SECOND times a second."""
_ANSWER_TIMEOUT: Final = 1.0
_PER_MESSAGE: Final = 256

_log = logging.getLogger("dspy_registry")


class HealthTeller:
    """What one reporter tells. The thread that gathers calls owns `outcomes`; `tell` may be called by any thread."""

    def __init__(self, folder: Path, health: HostHealth) -> None:
        self.outcomes = Outcomes()
        self._health = health
        self._link = ReportLink(folder)
        self._lock = threading.Lock()
        self._unsent: deque[ReportedOutcome] = deque(maxlen=MOST_KEPT)
        self._silent_until = 0.0
        self._is_closed = False

    def tell(self, outcomes: list[ReportedOutcome]) -> None:
        """Tell the daemon, else count them in this process, and tell the daemon when it is there."""
        with self._lock:
            if self._is_closed or not (outcomes or self._unsent):
                return
            self._unsent.extend(outcomes)
            if not self._is_sent():
                self._health.count([_told(each) for each in outcomes])
        if self._is_closed:
            self._disconnect()

    def _is_sent(self) -> bool:
        if time.monotonic() < self._silent_until:
            return False
        try:
            while self._unsent:
                portion = [self._unsent[at] for at in range(min(_PER_MESSAGE, len(self._unsent)))]
                self._link.tell(portion, _ANSWER_TIMEOUT)
                for _ in portion:
                    self._unsent.popleft()
        except RegistryError as error:
            if isinstance(error, WriterTimeoutError):  # each further attempt would take as long
                self._silent_until = time.monotonic() + _ANSWER_TIMEOUT
            _log.debug("how calls ended is not told to the writer daemon: %s", error)
            return False
        self._health.leave_to_daemon()
        return True

    def close(self) -> None:
        """End the connection, if there is one. Nothing is told from now on."""
        self._is_closed = True
        self._disconnect()

    def _disconnect(self) -> None:
        """A thread that tells ends the connection afterwards: nobody waits for the daemon to answer it."""
        if self._lock.acquire(blocking=False):
            try:
                self._link.close()
            finally:
                self._lock.release()

    def leave_to_parent(self) -> None:
        """In a forked child: the connection is the parent's. A thread that the child lacks may have the lock."""
        self._link.close()


class Pace:
    """How often a process may send: SENDS_AT_ONCE without a pause, SENDS_PER_SECOND for long."""

    def __init__(self) -> None:
        self._left = float(SENDS_AT_ONCE)
        self._at = time.monotonic()

    def pause(self) -> float:
        """Count one sending. Returns how many seconds to wait before it."""
        now = time.monotonic()
        self._left = min(SENDS_AT_ONCE, self._left + (now - self._at) * SENDS_PER_SECOND) - 1
        self._at = now
        return max(0.0, -self._left / SENDS_PER_SECOND)


def _told(each: ReportedOutcome) -> ToldOutcome:
    return ToldOutcome(each.names, each.version, Outcome(each.began, each.ended, each.kind, each.retry_after))
