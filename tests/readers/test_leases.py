"""Limits across processes: never one call too many, no leak, whoever is killed, stopped, forked."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dspy_registry.readers.leases import Leases
from dspy_registry.readers.limits import LimitedCall, all_holders
from dspy_registry.readers.limits_async import AsyncLimitedCall
from dspy_registry.registry_store.errors import InvalidArgumentError, LimitReachedError
from dspy_registry.registry_store.policy import Limit
from tests.support import ROOT
from tests.support.forks import await_all, fork
from tests.support.limit_process import NEURAL, QA, Witness, all_free, await_all_free, call
from tests.support.processes import child

PROCESS = "tests.support.limit_process"


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    return Leases(tmp_path)


# One process


def test_a_limit_allows_that_many_calls_and_names_who_has_them(leases: Leases, tmp_path: Path) -> None:
    with call(leases, 2), call(leases, 2):
        with pytest.raises(LimitReachedError, match=f"process {os.getpid()}") as caught, call(leases, 2):
            pass
        assert (caught.value.limit, caught.value.calls, len(caught.value.holders)) == (QA, 2, 2)
        assert isinstance(caught.value, TimeoutError)
        assert [holder.pid for holder in all_holders(leases)] == [os.getpid()] * 2
    assert all_holders(leases) == []
    assert all_free(tmp_path)


def test_a_call_tells_that_it_ended_once_anybody_has_waited(leases: Leases) -> None:
    region = leases.region(QA, 1)
    changes = []
    region.word.change = lambda: changes.append(1)  # type: ignore[method-assign]
    with call(leases):
        pass
    assert changes == []
    with call(leases):
        region.listen()
    assert changes == [1]


def test_patience_is_seconds(leases: Leases) -> None:
    with call(leases):
        began = time.monotonic()
        with pytest.raises(LimitReachedError), call(leases, patience=0.3):
            pass
        assert time.monotonic() - began >= 0.3
    with pytest.raises(InvalidArgumentError, match="patience"):
        call(leases, patience=float("nan"))
    with pytest.raises(InvalidArgumentError, match="patience"):
        call(leases, patience="x")  # type: ignore[arg-type]


def test_a_lowered_limit_begins_none_above_it(leases: Leases) -> None:
    eight = [call(leases, 8).__enter__() for _ in range(8)]
    for ended in (0, 1, 2, 3):  # the first cells are free, and yet four calls are under way
        eight[ended].end()
    with pytest.raises(LimitReachedError), call(leases, 4):
        pass
    eight[7].end()
    with call(leases, 4), pytest.raises(LimitReachedError), call(leases, 4):
        pass
    for rest in (4, 5, 6):
        eight[rest].end()
    four = [call(leases, 4).__enter__() for _ in range(4)]
    with pytest.raises(LimitReachedError), call(leases, 4):
        pass
    with call(leases, 5):
        pass
    for each in four:
        each.end()


@pytest.mark.parametrize("seed", range(20))
def test_random_limits_are_kept(leases: Leases, seed: int) -> None:
    """A call begins exactly if fewer are under way than the limit that it is begun under."""
    chance = random.Random(seed)
    under_way: list[LimitedCall] = []
    for _ in range(300):
        if under_way and chance.random() < 0.5:
            under_way.pop(chance.randrange(len(under_way))).end()
            continue
        calls = chance.choice((1, 2, 3, 5, 8, 20, 40))
        try:
            began = call(leases, calls).__enter__()
        except LimitReachedError:
            assert len(under_way) >= calls
        else:
            assert len(under_way) < calls
            under_way.append(began)


def test_a_limit_that_another_process_raised_is_looked_at(leases: Leases, tmp_path: Path) -> None:
    with call(leases, 2):
        pass
    other = Leases(tmp_path)
    many = [call(other, 40).__enter__() for _ in range(40)]
    with pytest.raises(LimitReachedError):
        call(leases, 2).__enter__()
    for each in many[:-1]:
        each.end()
    with call(leases, 2), pytest.raises(LimitReachedError):
        call(leases, 2).__enter__()


@pytest.mark.parametrize("_", range(20))
def test_threads_may_open_the_file_at_the_same_time(tmp_path: Path, _: int) -> None:
    leases, begun = Leases(tmp_path), []
    together = threading.Barrier(6)

    def work() -> None:
        together.wait()
        try:
            begun.append(call(leases, 2).__enter__())
        except LimitReachedError:
            return

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 2


def test_module_and_pool_are_taken_together_or_not_at_all(leases: Leases) -> None:
    both = (Limit(QA, 2), Limit(NEURAL, 1))
    with LimitedCall(leases, both, 0.0):
        with pytest.raises(LimitReachedError) as caught, LimitedCall(leases, both, 0.0):
            pass
        assert caught.value.limit == NEURAL
        assert len(all_holders(leases)) == 2
        with call(leases, 2):
            pass


def test_a_call_that_nobody_has_any_more_is_ended(leases: Leases, tmp_path: Path) -> None:
    abandoned = call(leases).__enter__()
    assert not all_free(tmp_path)
    del abandoned
    assert all_free(tmp_path)


def test_threads_of_one_process_keep_it_too(leases: Leases) -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal under_way, most
        for _ in range(50):
            with call(leases, 3, None):
                with lock:
                    under_way += 1
                    most = max(most, under_way)
                time.sleep(0.0002)
                with lock:
                    under_way -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


def test_tasks_wait_without_blocking_their_loop(leases: Leases, tmp_path: Path) -> None:
    under_way = most = ticks = 0

    async def work() -> None:
        nonlocal under_way, most
        for _ in range(10):
            async with AsyncLimitedCall(call(leases, 3, None)):
                under_way += 1
                most = max(most, under_way)
                await asyncio.sleep(0.001)
                under_way -= 1

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    async def scene() -> None:
        ticking = asyncio.create_task(tick())
        await asyncio.gather(*[work() for _ in range(20)])
        ticking.cancel()

    asyncio.run(scene())
    assert most == 3
    assert ticks > 10
    assert all_free(tmp_path)


def test_a_cancelled_task_leaves_nothing(leases: Leases, tmp_path: Path) -> None:
    async def wait() -> None:
        async with AsyncLimitedCall(call(leases, 1, None)):
            await asyncio.sleep(3600)

    async def scene() -> None:
        with call(leases):
            tasks = [asyncio.create_task(wait()) for _ in range(5)]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with pytest.raises(LimitReachedError):
                await AsyncLimitedCall(call(leases, 1, 0.05)).__aenter__()
        async with AsyncLimitedCall(call(leases)):
            pass

    asyncio.run(scene())
    assert all_free(tmp_path)


# Several processes


def test_a_killed_holder_has_nothing_any_more(leases: Leases, tmp_path: Path) -> None:
    with child(PROCESS, "hold_when_told", tmp_path, 1) as holder:
        assert holder.ask(0) == "begun"
        with pytest.raises(LimitReachedError, match=f"process {holder.pid}"), call(leases):
            pass
        holder.kill()
        with call(leases, patience=1.0):
            pass


def test_a_stopped_holder_keeps_what_it_has(leases: Leases, tmp_path: Path) -> None:
    with child(PROCESS, "hold_when_told", tmp_path, 1) as holder:
        assert holder.ask(0) == "begun"
        os.kill(holder.pid, signal.SIGSTOP)
        with pytest.raises(LimitReachedError), call(leases, patience=0.1):
            pass
        with call(leases, 2):
            pass
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.ask(None) == "ended"
        with call(leases):
            pass


def test_a_waiter_is_woken_by_another_process(leases: Leases, tmp_path: Path) -> None:
    with child(PROCESS, "hold_when_told", tmp_path, 1) as holder:
        assert holder.ask(0) == "begun"
        began: list[bool] = []

        def wait() -> None:
            with call(leases, patience=30.0):
                began.append(True)

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert holder.ask(None) == "ended"
        waiting.join(10)
        assert began


def test_a_fork_within_a_call_leaves_it_with_the_parent(leases: Leases, tmp_path: Path) -> None:
    def inside() -> None:
        guard.__exit__(None, None, None)  # the child leaves the `with` too: it is not the child's to end
        with pytest.raises(LimitReachedError):
            call(leases).__enter__()

    def after() -> None:
        with call(leases):
            pass

    with call(leases) as guard:
        await_all(fork(inside))
        with pytest.raises(LimitReachedError):
            call(leases).__enter__()
    await_all(fork(after))
    assert all_free(tmp_path)


def test_a_child_does_not_keep_the_call_of_a_parent_that_died(tmp_path: Path) -> None:
    """It has closed the descriptor that it inherited, by which the lock would live on."""
    scene = f"""
import os, sys, time
from pathlib import Path
from dspy_registry.readers.leases import Leases
from dspy_registry.readers.limits import LimitedCall
from dspy_registry.registry_store.policy import Limit
with LimitedCall(Leases(Path({str(tmp_path)!r})), (Limit({QA!r}, 1),), 0.0):
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    print(flush=True)
    os.kill(os.getpid(), 9)
"""
    with subprocess.Popen(
        [sys.executable, "-c", scene], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.wait() == -signal.SIGKILL
        assert await_all_free(tmp_path)


def disturbed(folder: Path, calls: int, times: int, seed: int, kept: tuple[bool, ...] = (True,) * 8) -> int:
    """How many calls eight processes made, some killed, stopped, interrupted; one too many is an error.

    `kept`: which of them keep cells.
    """
    chance = random.Random(seed)
    made = 0
    workers = [
        child(PROCESS, "call_again_and_again", folder, calls, times, number, keeps) for number, keeps in enumerate(kept)
    ]
    entered = [worker.__enter__() for worker in workers]
    try:
        assert {worker.hear() for worker in entered} == {"ready"}
        doomed = entered[:2]
        for _ in range(times // 4):
            time.sleep(chance.random() * 0.01)
            victim = chance.choice(entered)
            if victim._process.poll() is None:
                os.kill(victim.pid, chance.choice((signal.SIGINT, signal.SIGSTOP)))
                time.sleep(chance.random() * 0.002)
                os.kill(victim.pid, signal.SIGCONT)
        for victim in doomed:
            victim.kill()
        for worker in entered[2:]:
            too_many, calls_made = worker.hear()
            assert too_many == 0
            made += calls_made
    finally:
        for worker in workers:
            worker.__exit__(None, None, None)
    return made


ALL, SOME, NONE = (True,) * 8, (True, False) * 4, (False,) * 8
KEPT = pytest.mark.parametrize("kept", [ALL, SOME, NONE], ids=["all keep cells", "some keep cells", "none keeps cells"])


@KEPT
def test_killed_stopped_and_interrupted_workers_keep_it(tmp_path: Path, kept: tuple[bool, ...]) -> None:
    assert disturbed(tmp_path, 3, 200, 1, kept) == 6 * 200
    assert await_all_free(tmp_path)


@KEPT
@pytest.mark.stress
def test_a_hundred_thousand_disturbed_calls(tmp_path: Path, kept: tuple[bool, ...]) -> None:
    assert disturbed(tmp_path, 3, 17_000, 2, kept) >= 100_000
    assert await_all_free(tmp_path)


def test_the_witness_tells(tmp_path: Path) -> None:
    one, another = Witness(tmp_path, 1), Witness(tmp_path, 1)
    with one.one_more() as first, another.one_more() as second:
        assert (first, second) == (True, False)
