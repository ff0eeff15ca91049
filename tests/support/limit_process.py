"""Processes that keep a limit, and a witness of another kind that tells when one call too many is under way."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dspy_registry.readers.leases import Leases
from dspy_registry.readers.limits import LimitedCall
from dspy_registry.registry_store.errors import LimitReachedError
from dspy_registry.registry_store.lease_cells import cells_of, is_in_use
from dspy_registry.registry_store.lease_file import ALIVE, PROCESS, LeaseFile
from dspy_registry.registry_store.policy import Limit
from tests.support.processes import requests, say
from tests.support.system_calls import forbid

MEMBARRIER = {"x86_64": 324, "aarch64": 283}.get(os.uname().machine)
QA, NEURAL = "module:acme.Qa", "pool:neural"


def call(leases: Leases, calls: int = 1, patience: float | None = 0.0, key: str = QA) -> LimitedCall:
    """A call under one limit."""
    return LimitedCall(leases, (Limit(key, calls),), patience)


def began(limited: LimitedCall) -> bool:
    """Whether a call could begin."""
    try:
        limited.__enter__()
    except LimitReachedError:
        return False
    return True


class Witness:
    """One file for each call that a limit allows; a call under way has one of them, by flock.

    Made before the leases are opened: of a process that dies, the system closes what was opened first, first.
    """

    def __init__(self, folder: Path, calls: int) -> None:
        paths = [folder / f"witness-{number}" for number in range(calls)]
        self._files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o600) for path in paths]

    @contextmanager
    def one_more(self) -> Iterator[bool]:
        """Whether no more calls than allowed are under way with this one."""
        for file in self._files:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            try:
                yield True
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
            return
        yield False


def all_free(folder: Path) -> bool:
    """Whether no process has any cell of the file of leases, by its lock or by the word of its owner."""
    looking = LeaseFile(folder)
    try:
        limits = [at for at in looking.regions() if at.key != PROCESS]
        return not looking.is_locked_elsewhere(0, ALIVE) and not any(
            is_in_use(looking, start) for at in limits for start in cells_of(at)
        )
    finally:
        looking.close()


def await_all_free(folder: Path, seconds: float = 1.0) -> bool:
    end = time.monotonic() + seconds
    while not all_free(folder):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def hold_when_told(folder: str, calls: int, keeps: bool = True) -> None:
    """Takes a call when it is told a patience, gives it back when it is told None; says what became of it."""
    if not keeps:
        keep_nothing()
    leases, held = Leases(Path(folder)), []
    for patience in requests():
        if patience is None:
            held.pop().end()
            say("ended")
            continue
        call = LimitedCall(leases, (Limit(QA, calls),), patience)
        try:
            held.append(call.__enter__())
            say("begun")
        except TimeoutError as error:
            say(str(error))


def keep_nothing() -> None:
    """Forbid this process membarrier, without which no cell is kept."""
    assert MEMBARRIER is not None
    forbid(MEMBARRIER, errno.ENOSYS)


def call_again_and_again(folder: str, calls: int, times: int, seed: int, keeps: bool = True) -> None:
    """Calls under a module's and a pool's limit; says how often there was one too many, and how many calls it made."""
    if not keeps:
        keep_nothing()
    chance = random.Random(seed)
    witness = Witness(Path(folder), calls)
    leases = Leases(Path(folder))
    limits = (Limit(QA, calls), Limit(NEURAL, calls + 1))
    too_many = made = 0
    armed = False

    def interrupt(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    say("ready")
    while made < times:
        try:
            armed = True
            with LimitedCall(leases, limits, 30.0):
                armed = False  # an interrupt would make the witness keep what it has
                with witness.one_more() as allowed:
                    too_many += not allowed
                    made += 1
                    time.sleep(chance.random() * 0.0005)
                armed = True
            armed = False
        except KeyboardInterrupt:
            continue
    say([too_many, made])


def call_in_turn(folder: str, calls: int, times: int, seed: int) -> None:
    """Calls without patience while it has one of as many tokens as the limit has calls; says how often it was refused.

    So it must never be refused, whichever processes keep which cells.
    """
    chance = random.Random(seed)
    tokens = Witness(Path(folder), calls)
    leases = Leases(Path(folder))
    made = refused = 0
    while made < times:
        with tokens.one_more() as allowed:
            if not allowed:
                continue
            made += 1
            try:
                with LimitedCall(leases, (Limit(QA, calls),), 0.0):
                    if chance.random() < 0.5:
                        time.sleep(0)
            except TimeoutError:
                refused += 1
    say([refused, made])
