"""Threads that give back the same byte, or wait for it: at every line of ours, in turn."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from dspy_registry.readers.lease_regions import Region
from dspy_registry.readers.leases import Lease, Leases
from dspy_registry.readers.limits import LimitedCall
from dspy_registry.readers.limits_async import AsyncLimitedCall
from dspy_registry.registry_store.boot_clock import own_identity
from dspy_registry.registry_store.byte_locks import Hold, LockedFile
from dspy_registry.registry_store.errors import LimitReachedError
from dspy_registry.registry_store.lease_cells import call_in
from dspy_registry.registry_store.lease_replacing import compact_lease_file
from dspy_registry.registry_store.policy import Limit
from tests.support.limit_process import QA, all_free, call
from tests.support.pauses import paused_at
from tests.support.processes import run

Begin = Callable[[LimitedCall], object]


def in_a_thread(limited: LimitedCall) -> object:
    return limited.__enter__()


def in_a_task(limited: LimitedCall) -> object:
    return asyncio.run(AsyncLimitedCall(limited).__aenter__())


FORMS = pytest.mark.parametrize("begin", [in_a_thread, in_a_task])


# Two threads give back one byte


@pytest.mark.parametrize("is_swept", [True, False])
def test_a_byte_that_two_threads_give_back_stays_with_its_next_holder(tmp_path: Path, is_swept: bool) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(8))
    file, looking = LockedFile(path), LockedFile(path)
    line = 0
    while True:
        former, following = Hold(file), Hold(file)
        assert former.take(3)
        if is_swept:
            forgotten(former)

        def give_back(former: Hold = former, following: Hold = following) -> None:
            file.sweep() if is_swept else former.give_back()
            assert following.take(3)

        more = paused_at(line, file.sweep if is_swept else former.give_back, give_back, "byte_locks.py")
        assert looking.is_locked_elsewhere(3), f"a pause at line {line} unlocked the byte of another hold"
        following.give_back()
        assert not looking.is_locked_elsewhere(3)
        if not more:
            break
        line += 1
    assert line > 3


def test_a_call_that_two_threads_give_back_leaves_the_cell_of_its_next_holder(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    region = leases.region(QA, 1)
    line = 0
    while True:
        former, following = Lease(region), Lease(region)
        assert former.begin(1)

        def give_back(former: Lease = former, following: Lease = following) -> None:
            former.give_back()
            assert following.begin(1)

        more = paused_at(line, former.give_back, give_back, "leases.py", "lease_file.py", "byte_locks.py")
        found = call_in(region.file, following.start)
        assert found is not None, f"a pause at line {line} cleared it"
        assert found[0] == own_identity()
        following.give_back()
        if not more:
            break
        line += 1
    assert line > 3


def forgotten(hold: Hold) -> None:
    """What an interrupted finalizer leaves: the byte is locked, and its owner is gone."""
    gone = Hold(hold.file)
    hold.file.held[hold.start] = weakref.ref(gone)
    hold.start = -1


# Whoever waits for a limit


@FORMS
def test_a_call_whose_finalizer_was_interrupted_is_ended_by_who_waits(tmp_path: Path, begin: Begin) -> None:
    leases = Leases(tmp_path)
    lease = Lease(leases.region(QA, 1))
    assert lease.begin(1)
    forgotten(lease)
    begun = call(leases, patience=30.0)
    begin(begun)
    begun.end()
    assert all_free(tmp_path)


class ReplacedLeases(Leases):
    """The file of leases is replaced each time just after its region was looked up."""

    def __init__(self, folder: Path, times: int) -> None:
        super().__init__(folder)
        self.times = times

    def region(self, key: str, calls: int) -> Region:
        region = super().region(key, calls)
        if self.times:
            self.times -= 1
            assert compact_lease_file(self.folder)
        return region


@FORMS
def test_a_file_that_is_just_being_replaced_refuses_nobody(tmp_path: Path, begin: Begin) -> None:
    leases = ReplacedLeases(tmp_path, times=3)
    begun = call(leases, patience=0.0)
    begin(begun)
    begun.end()


class FullInTurn(LimitedCall):
    """Each try is stopped by the other one of its two limits."""

    def try_to_begin(self) -> Region | None:
        self._limits = self._limits[::-1]
        return super().try_to_begin()


@FORMS
def test_patience_ends_although_one_limit_after_the_other_is_reached(tmp_path: Path, begin: Begin) -> None:
    leases = Leases(tmp_path)
    with call(leases), call(leases, key="pool:neural"), pytest.raises(LimitReachedError):
        begin(FullInTurn(leases, (Limit(QA, 1), Limit("pool:neural", 1)), 0.0))


# Interrupts while a call is given back


def interrupt_a_return(folder: str) -> None:
    """Interrupts the return of a call at each line; says in how many cases a waiter was not told of it."""
    from tests.support.interrupts import interrupted_everywhere
    from tests.support.processes import say

    leases = Leases(Path(folder))
    region = leases.region(QA, 1)
    told: list[int] = []
    tell = region.word.wake_one
    region.word.wake_one = lambda: (tell(), told.append(1))  # type: ignore[method-assign,assignment,func-returns-value]
    is_held = False
    untold = 0

    def work() -> None:
        nonlocal is_held
        is_held = False
        lease = Lease(region)
        assert lease.begin(1)
        region.listen()
        told.clear()
        is_held = True
        lease.give_back()

    def is_sound() -> bool:
        nonlocal untold
        gc.collect()
        untold += is_held and not told
        return all_free(Path(folder))

    lines = interrupted_everywhere(work, is_sound)
    say([lines, untold])


def test_a_waiter_is_told_although_the_return_is_interrupted(tmp_path: Path) -> None:
    ((lines, untold),) = run(__name__, "interrupt_a_return", tmp_path)
    assert lines > 10
    assert untold == 0
