"""Keeping limits: begin a call under all its limits, and wait for that as long as the patience lasts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import inf
from types import NoneType, TracebackType
from typing import Final

import msgspec

from dspy_registry.readers.lease_regions import LONGEST_WAIT, Region
from dspy_registry.readers.leases import Lease, Leases
from dspy_registry.registry_store.arguments import NUMBER, check_type
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.errors import InvalidArgumentError, LimitReachedError
from dspy_registry.registry_store.lease_cells import call_in, cells_of
from dspy_registry.registry_store.lease_file import LEASES_FILE, LeaseFile
from dspy_registry.registry_store.policy import MODULE, POOL, Limit

_EMPTY_TRIES: Final = 20
_PAUSE: Final = 0.0005


class Holder(msgspec.Struct, frozen=True, gc=False):
    """The holder of one call of a limit: its pid (0: not known), and the seconds since the call began."""

    limit: str
    pid: int
    seconds: float

    def __str__(self) -> str:
        return f"process {self.pid or 'unknown'} for {self.seconds:.1f} s"


class LimitedCall:
    """A call under limits, for the length of a `with`. `patience` is in seconds; 0: do not wait, None: no end.

    It may be used again, but not twice at once. In a process that was forked inside the `with`, leaving the `with` does
    nothing, because the call is the parent's.
    """

    __slots__ = ("_leases", "_limits", "_patience", "_taken")

    def __init__(self, leases: Leases, limits: Sequence[Limit], patience: float | None = None) -> None:
        self._leases = leases
        self._limits = limits
        self._patience = None if patience is None else checked_patience(patience)
        self._taken: list[Lease] = []

    def __enter__(self) -> LimitedCall:
        try:
            blocked = self.try_to_begin()
            if blocked is not None:
                self._wait(blocked)
            return self
        except BaseException:
            self.end()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    @property
    def is_limited(self) -> bool:
        """Whether there are any limits."""
        return bool(self._limits)

    def try_to_begin(self) -> Region | None:
        """Returns None if the call has begun, else the first limit that does not allow it now. Then nothing is held."""
        for key, calls in self._limits:  # in the order of their keys, the same in every process
            lease = Lease(self._leases.region(key, calls))
            self._taken.append(lease)
            if not lease.begin(calls):
                self.end()
                return lease.region
        return None

    def end(self) -> None:
        """Give back all that is held."""
        taken = self._taken
        while taken:
            taken[-1].give_back()
            taken.pop()

    def is_reached(self, blocked: Region) -> bool:
        """Whether a limit has all its calls. Not always when a try failed: a cell may be on its way to another one."""
        return len(holders_of(blocked)) >= self._limit(blocked).calls

    def refusal(self, blocked: Region) -> LimitReachedError:
        """The error that names a limit and who has its calls."""
        limit = self._limit(blocked)
        return LimitReachedError(limit.key, limit.calls, map(str, holders_of(blocked)))

    def _limit(self, region: Region) -> Limit:
        return next(limit for limit in self._limits if limit.key == region.key)

    @property
    def patience(self) -> float:
        """In seconds; inf: no end."""
        return inf if self._patience is None else self._patience

    def _wait(self, blocked: Region) -> None:
        patience = Patience(self)
        try:
            while True:
                blocked.listen()
                seen = blocked.word.value  # before the try: a call that is given back after the try changes the word
                blocked.file.sweep()
                now_blocked = self.try_to_begin()
                if now_blocked is None:
                    return
                seconds = patience.seconds(now_blocked)
                if now_blocked is blocked:
                    blocked.word.wait(seen, seconds)
                blocked = now_blocked  # if it is another one: its word was not looked at before the try
        except BaseException:
            blocked.tell()  # it may have been woken instead of another waiter
            raise


class Patience:
    """How long a call goes on waiting. It begins now."""

    def __init__(self, call: LimitedCall) -> None:
        self._call = call
        self._end = time.monotonic() + call.patience
        self._empty_tries = 0

    def seconds(self, blocked: Region) -> float:
        """How many seconds to wait before the next try. Raises LimitReachedError when patience has ended."""
        left = self._end - time.monotonic()
        if left > 0:
            return min(left, LONGEST_WAIT)
        if self._empty_tries < _EMPTY_TRIES and not self._call.is_reached(blocked):
            self._empty_tries += 1  # the file is just being replaced, or a cell taken from who keeps it
            return _PAUSE
        raise self._call.refusal(blocked)


def checked_patience(patience: float | None) -> float | None:
    """Raises InvalidArgumentError, which is a TypeError, too, for what is not a number."""
    check_type("patience", patience, *NUMBER, NoneType)
    if patience is not None and not patience >= 0:  # not NaN
        raise InvalidArgumentError(f"patience is {patience!r}, it must be seconds, 0 or more, or None.")
    return patience


def holders_of(region: Region) -> list[Holder]:
    """Who has calls of one limit now."""
    return _holders(region.file, region.key, region.starts[: region.widest[()]])


def all_holders(leases: Leases) -> list[Holder]:
    """Who has which calls of which limits now, in the order of the file."""
    if not (leases.folder / LEASES_FILE).exists():
        return []
    file = leases.file()
    found: list[Holder] = []
    for at in file.regions():
        if at.key.startswith((MODULE, POOL)):
            found += _holders(file, at.key, cells_of(at))
    return found


def _holders(file: LeaseFile, key: str, starts: Sequence[int]) -> list[Holder]:
    now = boot_seconds()
    calls = [call for start in starts if (call := call_in(file, start)) is not None]
    return [Holder(key, process.pid, max(0.0, now - since) if process.pid else 0.0) for process, since in calls]
