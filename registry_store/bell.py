"""The bell of the revision file: a number on which processes sleep until something changes.

    0   number, 4    another one after each commit; 0: the writer rings none
    4   4            those who were set aside sleep here
    8   until when somebody may be asleep, 8: seconds of the monotonic clock; infinity: always

To ask the system whether anybody sleeps takes some microseconds of each commit. So those who go to sleep write down
until when they may, and the writer mostly reads this alone. A reader of another user may sleep and not write. Where
there can be one, infinity stands there from the start, and the writer asks the system after each commit.
"""

from __future__ import annotations

import math
import mmap
import time
from typing import Final

from dspy_registry.registry_store.futex import LONGEST_WAIT, FutexWord

_ALWAYS: Final = math.inf
_UNTIL_AT: Final = 8  # from the beginning of the bell
_ANNOUNCED: Final = 3 * LONGEST_WAIT
"""Seconds. Several processes write here, and the last one counts. This is longer than any of the others may sleep."""
_GRACE: Final = 0.002
"""Seconds. A processor keeps a store to itself for less than a microsecond."""


class Bell(FutexWord):
    """The bell at an offset of a mapping, which is a multiple of 8. To sleep, a read-only mapping is enough."""

    def __init__(self, mapping: mmap.mmap, offset: int) -> None:
        at = offset + _UNTIL_AT
        self._until = memoryview(mapping)[at : at + 8].cast("d", shape=[])
        super().__init__(mapping, offset)

    @property
    def is_always_rung(self) -> bool:
        """Whether nobody has to announce that he sleeps."""
        return self._until[()] == _ALWAYS

    def is_awaited(self) -> bool:
        """Whether somebody may be asleep. Ask after the number was raised."""
        return self._until[()] > time.monotonic()

    def announce(self) -> None:
        """Say that somebody will sleep here, for a second at most. Needs a writable mapping.

        The first of them waits a moment: then a writer that raises the number later reads what was written here.
        """
        until, now = self._until[()], time.monotonic()
        if until == _ALWAYS:
            return
        self._until[()] = now + _ANNOUNCED
        if until <= now:
            time.sleep(_GRACE)

    def release(self) -> None:
        """Stop using the mapping. The bell must not be used afterwards."""
        super().release()
        self._until.release()
