"""While a fork waits for open snapshots, no other begins. Else one thread or another would always hold one.

A flag and short sleeps: a child would inherit a lock that another thread of its parent holds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 1.0
"""Seconds that a fork waits for snapshots, and snapshots for a fork."""

_waiting = False


def set_waiting(is_waiting: bool) -> None:
    """Say whether a fork waits. The flag is the whole process's."""
    global _waiting
    _waiting = is_waiting


def let_fork_pass(holders: Callable[[], set[int]]) -> None:
    """Call it before a snapshot begins, where no lock is held. `holders` gives the threads that have snapshots.

    Such a thread does not wait, because the fork waits for its snapshots.
    """
    if not _waiting or threading.get_ident() in holders():
        return
    patient_until = time.monotonic() + PATIENCE
    while time.monotonic() < patient_until and _is_waiting():
        time.sleep(0.001)


def _is_waiting() -> bool:
    return _waiting
