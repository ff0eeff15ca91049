"""What is not healthy on this host, as one process knows it: what the daemon published, and its own circuits.

A process keeps circuits itself only while no daemon takes its reports. They follow the same rules.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from math import inf, isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.circuit import CLOSED, DEFAULTS, CircuitRow, CircuitRules, Outcome, State, state_at
from dspy_registry.registry_store.errors import RegistryError, RegistryNotFoundError
from dspy_registry.registry_store.health_file import HealthFile
from dspy_registry.registry_store.revision import is_retired, private_word

if TYPE_CHECKING:
    from dspy_registry.registry_store.circuits import Circuits, Key

IN_FORCE: Final = 0
"""The version under which a process counts calls that were reported without one."""

_LOOK_AGAIN_EVERY: Final = 1.0  # seconds, where there is no usable file
_NO_WORD: Final = private_word(nan)  # it equals nothing, so each question takes the slow path


class ToldOutcome(msgspec.Struct, frozen=True, gc=False):
    """A call that ended, and the names that its module may have. `version` 0: the one in force when it began."""

    names: tuple[str, ...]
    version: int
    outcome: Outcome


class Known:
    """What is not healthy, as of one `word`. It never changes: a kept answer is compared with it by identity."""

    __slots__ = ("_rows", "own", "seen", "word")

    def __init__(self, word: float, rows: Iterable[CircuitRow] = (), own: Iterable[CircuitRow] = ()) -> None:
        self.word = word
        self.seen = private_word(word)
        self.own = tuple(own)
        self._rows: dict[Key, CircuitRow] = {}
        for row in (*rows, *self.own):
            key = row.name, row.version
            if key not in self._rows or self._rows[key].until < row.until:
                self._rows[key] = row

    def __bool__(self) -> bool:
        """Whether anything was not healthy."""
        return bool(self._rows)

    @property
    def rows(self) -> tuple[CircuitRow, ...]:
        """All rows, those of closed circuits too."""
        return tuple(self._rows.values())

    def until(self, name: str, version: int) -> float:
        """The deadline of a circuit on the boot-time clock; 0.0: it is closed. `name` is a full name.

        What this process counted without a version holds for every version that is asked for.
        """
        rows = self._rows
        if not rows:
            return 0.0
        found, own = rows.get((name, version)), rows.get((name, IN_FORCE))
        return max(found.until if found else 0.0, own.until if own else 0.0)

    def state(self, name: str, version: int, now: float | None = None) -> State:
        """The state of a circuit at a moment on the boot-time clock; None: now."""
        until = self.until(name, version)
        return state_at(until, boot_seconds() if now is None else now) if until else CLOSED

    def next_change(self, now: float) -> float:
        """The earliest deadline after `now`, on the boot-time clock: until then all states stay. `inf`: there is none.

        An answer that was made from these states may be kept until then.
        """
        return min((row.until for row in self._rows.values() if row.until > now), default=inf)


class HostHealth:
    """The health of one registry's modules. Threads may share it.

    While `word == known.seen`, `known` is what is in force. Otherwise, and always while there is no file, `current`
    finds out. A kept route looks at the health count of the file `revision` in place of the word.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: HealthFile | None = None
        self._published: tuple[CircuitRow, ...] = ()
        self._look_again_at = 0.0
        self._own: Circuits | None = None
        self._own_rules: dict[str, CircuitRules] = {}
        self._has_told = False
        self.word: memoryview[float] = _NO_WORD
        self.known = Known(nan)
        self.rules: Callable[[str], CircuitRules] = _default_rules
        """The rules of a module, for circuits of this process."""
        self.begin()

    def begin(self) -> None:
        """No thread is at work here: at first, and in a forked child."""
        self._lock = threading.RLock()  # re-entered by a signal's handler; each step is harmless twice

    def current(self) -> Known:
        """What is not healthy now."""
        known = self.known
        return known if self.word == known.seen else self._refreshed()

    def looked_up(self) -> Known:
        """As `current`, but a file that is new, or was replaced by hand, is found at once."""
        with self._lock:
            if self._file is None or not self._file.is_current():
                self._file, self._look_again_at = None, 0.0
                self.word = _NO_WORD
        return self.current()

    def file(self) -> HealthFile | None:
        """The mapped file, whose futex word changes with every list. None: there is none that can be used."""
        self.looked_up()
        return self._file

    # While no daemon takes reports

    def count(self, outcomes: Sequence[ToldOutcome]) -> None:
        """Count calls of this process, because no daemon does."""
        # Asked before the lock is taken: a reader that answers may be asking for health itself.
        rules = {name: self.rules(name) for told in outcomes for name in told.names}
        with self._lock:
            self._own_rules.update(rules)
            if self._own is None:
                from random import random  # most processes keep no circuits: a daemon does

                from dspy_registry.registry_store.circuits import Circuits

                self._own = Circuits(boot_seconds, random, lambda name: self._own_rules.get(name, DEFAULTS))
            changes = [self._own.record(name, told.version, told.outcome) for told in outcomes for name in told.names]
            self._own.sweep()
            if any(changes):
                self._renew(self.known.word)

    def leave_to_daemon(self) -> None:
        """Forget the circuits of this process: from now on a daemon keeps those of the host."""
        with self._lock:
            if self._own is not None:
                self._own = None
                self._own_rules = {}
                self._renew(self.known.word)

    def _renew(self, word: float) -> None:
        self.known = Known(word, self._published, () if self._own is None else self._own.rows())

    # The file

    def _refreshed(self) -> Known:
        with self._lock:
            if self._file is None and time.monotonic() < self._look_again_at:
                return self.known
            published = self._published
            word = self._read()
            if not isnan(word) or self._published != published:
                self._renew(word)
            elif not isnan(self.known.word):
                self._renew(nan)
            return self.known

    def _read(self) -> float:
        """Read what is published. Returns its word; NaN: there is no usable file."""
        try:
            if self._file is None or is_retired(self._file.word[()]):
                self._file = HealthFile(self._folder)
            word, rows = self._file.read()
        except (RegistryError, OSError) as error:  # OSError: this process may have too many files open
            self._tell(error)
            word, rows = nan, ()
        self._published = rows
        if isnan(word):
            self._file = None
            self._look_again_at = time.monotonic() + _LOOK_AGAIN_EVERY
        self.word = _NO_WORD if self._file is None else self._file.word
        return word

    def _tell(self, error: Exception) -> None:
        """Once. Calls go on where health is not known, because it only advises."""
        if not self._has_told and not isinstance(error, RegistryNotFoundError):
            self._has_told = True
            import logging  # loads much, and is seldom needed here

            logging.getLogger("dspy_registry").warning("what is not healthy on this host is not known: %s", error)


def _default_rules(name: str) -> CircuitRules:
    return DEFAULTS
