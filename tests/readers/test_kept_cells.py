"""Cells that a process keeps after its calls: they cost no lock, refuse nobody, and outlive nobody."""

from __future__ import annotations

import gc
import os
import random
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from dspy_registry.readers.leases import Lease, Leases
from dspy_registry.readers.limits import LimitedCall, all_holders, holders_of
from dspy_registry.registry_store.errors import LimitReachedError
from dspy_registry.registry_store.lease_file import ALIVE, LeaseFile
from dspy_registry.registry_store.lease_replacing import compact_lease_file
from tests.support.forks import fork
from tests.support.kept_cells import leases, needs_membarrier
from tests.support.limit_process import QA, all_free, began, call
from tests.support.processes import child

PROCESS = "tests.support.limit_process"

__all__ = ["leases"]

pytestmark = needs_membarrier


def test_a_call_in_a_kept_cell_takes_no_lock(leases: Leases, tmp_path: Path) -> None:
    leases.file()
    looking = LeaseFile(tmp_path)
    for _ in range(3):
        with call(leases, 2):
            assert not looking.is_locked_elsewhere(0, ALIVE)
            assert [holder.pid for holder in all_holders(leases)] == [os.getpid()]
    assert len(leases.region(QA, 2).idle) == 1


@pytest.mark.parametrize("stops", [False, True])
def test_cells_that_others_keep_refuse_nobody(leases: Leases, tmp_path: Path, stops: bool) -> None:
    """Also when those who keep them do not run."""
    with child(PROCESS, "hold_when_told", tmp_path, 3) as one, child(PROCESS, "hold_when_told", tmp_path, 3) as another:
        for process in (one, another):
            assert [process.ask(0) for _ in range(3)] == ["begun"] * 3
            assert [process.ask(None) for _ in range(3)] == ["ended"] * 3
            if stops:
                os.kill(process.pid, signal.SIGSTOP)
        with ExitStack() as held:
            for _ in range(3):
                held.enter_context(call(leases, 3))
            assert not began(call(leases, 3))
            if not stops:
                assert one.ask(0) != "begun"
        for process in (one, another):
            os.kill(process.pid, signal.SIGCONT)
            assert process.ask(0) == "begun"


def test_calls_in_kept_cells_end_with_their_process(leases: Leases, tmp_path: Path) -> None:
    with child(PROCESS, "hold_when_told", tmp_path, 2) as holder:
        for _ in range(2):
            assert holder.ask(0) == "begun"
            assert holder.ask(None) == "ended"
        assert [holder.ask(0) for _ in range(2)] == ["begun"] * 2
        assert {each.pid for each in all_holders(leases)} == {holder.pid}
        holder.kill()
        assert all_holders(leases) == []
        with call(leases, 2), call(leases, 2):
            pass


def test_a_record_of_a_process_that_died_is_used_again(leases: Leases, tmp_path: Path) -> None:
    with call(leases, 2):
        end = leases.file().end
        for _ in range(3):  # each begins in the cell of the one before, whose record it claims
            with child(PROCESS, "hold_when_told", tmp_path, 2) as holder:
                assert holder.ask(0) == "begun"
                holder.kill()
    assert leases.file().end - end < 2 * 8192


def test_a_record_that_is_younger_than_the_mapping(leases: Leases, tmp_path: Path) -> None:
    region = leases.region(QA, 1)
    many = [Leases(tmp_path) for _ in range(40)]
    for each in many:
        with call(each):
            pass
    assert region.file.end > len(region.file.map)
    with call(many[-1]):
        assert not began(call(leases))
    with call(leases):
        pass


def test_a_file_that_was_replaced_refuses_nobody(leases: Leases, tmp_path: Path) -> None:
    region = leases.region(QA, 1)
    for each in [Leases(tmp_path) for _ in range(40)]:
        with call(each):
            pass
    assert region.file.end > len(region.file.map)
    assert compact_lease_file(tmp_path)
    assert not Lease(region).begin(1)  # it was looked up before
    assert holders_of(region) == []
    with call(leases):
        pass


def test_more_cells_than_a_record_has_slots(leases: Leases, tmp_path: Path) -> None:
    with ExitStack() as held:
        for _ in range(700):
            held.enter_context(call(leases, 700))
        assert len(all_holders(leases)) == 700
        assert not began(call(leases, 700))
        assert not began(call(Leases(tmp_path), 700))
    assert all_free(tmp_path)


@pytest.mark.parametrize("seed", range(10))
def test_random_limits_are_kept_by_all(tmp_path: Path, seed: int) -> None:
    """As processes that keep cells of one another's: a call begins exactly if fewer are under way than its limit."""
    chance = random.Random(seed)
    several = [Leases(tmp_path) for _ in range(3)]
    under_way: list[LimitedCall] = []
    for _ in range(300):
        if under_way and chance.random() < 0.5:
            under_way.pop(chance.randrange(len(under_way))).end()
            continue
        calls = chance.choice((1, 2, 3, 5, 8, 20))
        limited = call(chance.choice(several), calls)
        assert began(limited) == (len(under_way) < calls)
        if limited._taken:
            under_way.append(limited)
        assert len(all_holders(several[0])) == len(under_way)


def test_calls_after_the_file_was_closed_are_in_a_new_one(leases: Leases, tmp_path: Path) -> None:
    kept = call(leases).__enter__()
    leases.close()
    kept.end()
    assert all_free(tmp_path)
    with call(leases):
        assert not began(call(Leases(tmp_path)))


def test_a_file_whose_cells_are_only_kept_is_replaced(leases: Leases, tmp_path: Path) -> None:
    other = Leases(tmp_path)
    for each in (leases, other):
        with call(each, 2):
            assert not compact_lease_file(tmp_path)
    assert compact_lease_file(tmp_path)
    with call(leases), pytest.raises(LimitReachedError):
        call(other).__enter__()


def test_a_forked_child_does_not_write_what_its_parent_keeps(leases: Leases, tmp_path: Path) -> None:
    region = leases.region(QA, 1)
    with call(leases):
        pass
    kept = region.idle[-1]
    lease = Lease(region)

    def work() -> None:
        with pytest.raises(ValueError, match="released"):
            kept.slot[()] = 1.0
        with pytest.raises(ValueError, match="released"):
            lease.begin(1)

    assert os.waitpid(fork(work), 0)[1] == 0
    gc.collect()
    assert all_free(tmp_path)


# Many processes


def exact(folder: Path, calls: int, processes: int, times: int) -> None:
    """Processes call at most as often at once as the limit allows. None of them is ever refused."""
    workers = [child(PROCESS, "call_in_turn", folder, calls, times, number) for number in range(processes)]
    with ExitStack() as open_ones:
        entered = [open_ones.enter_context(worker) for worker in workers]
        assert [worker.hear() for worker in entered] == [[0, times]] * processes
    assert all_free(folder)


def test_no_call_is_refused_while_fewer_are_under_way(tmp_path: Path) -> None:
    exact(tmp_path, 2, 6, 300)


@pytest.mark.stress
def test_no_call_of_a_hundred_thousand_is_refused(tmp_path: Path) -> None:
    exact(tmp_path, 2, 6, 17_000)


# Without membarrier


@pytest.mark.parametrize("who_keeps", ["the holder", "the other"])
def test_a_process_that_cannot_keep_cells_and_one_that_can(leases: Leases, tmp_path: Path, who_keeps: str) -> None:
    with (
        child(PROCESS, "hold_when_told", tmp_path, 1, who_keeps == "the holder") as holder,
        child(PROCESS, "hold_when_told", tmp_path, 1, who_keeps == "the other") as other,
    ):
        for _ in range(2):
            for first, second in ((holder, other), (other, holder)):
                assert first.ask(0) == "begun"
                assert f"process {first.pid}" in second.ask(0)
                assert len(all_holders(leases)) == 1
                assert first.ask(None) == "ended"
        assert holder.ask(0) == "begun"
        holder.kill()
        assert other.ask(0) == "begun"
        assert {each.pid for each in all_holders(leases)} == {other.pid}
