"""Limits across processes: never one call too many, no leak, whoever is killed, stopped, forked, interrupted."""

from __future__ import annotations

import asyncio
import gc
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
from dspy_registry.readers.probes import claim_probe
from dspy_registry.registry_store.errors import InvalidArgumentError, LimitReachedError, StoreError
from dspy_registry.registry_store.lease_file import (
    LEASES_FILE,
    REGIONS_AT,
    LeaseFile,
    compact_lease_file,
    ensure_lease_file,
    lease_file_problems,
)
from dspy_registry.registry_store.policy import Limit
from tests.support import ROOT
from tests.support.forks import await_all, fork
from tests.support.limit_process import NEURAL, QA, Witness, all_free, await_all_free
from tests.support.processes import child, run

PROCESS = "tests.support.limit_process"


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    return Leases(tmp_path)


def call(leases: Leases, calls: int = 1, patience: float | None = 0.0, key: str = QA) -> LimitedCall:
    return LimitedCall(leases, (Limit(key, calls),), patience)


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


def test_patience_is_seconds(leases: Leases) -> None:
    with call(leases):
        began = time.monotonic()
        with pytest.raises(LimitReachedError), call(leases, patience=0.3):
            pass
        assert time.monotonic() - began >= 0.3
    with pytest.raises(InvalidArgumentError, match="patience"):
        call(leases, patience=float("nan"))


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


def disturbed(folder: Path, calls: int, times: int, seed: int) -> int:
    """How many calls eight processes made, some killed, stopped, interrupted; one too many is an error."""
    chance = random.Random(seed)
    made = 0
    workers = [child(PROCESS, "call_again_and_again", folder, calls, times, number) for number in range(8)]
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


def test_killed_stopped_and_interrupted_workers_keep_it(tmp_path: Path) -> None:
    assert disturbed(tmp_path, 3, 200, 1) == 6 * 200
    assert await_all_free(tmp_path)


@pytest.mark.stress
def test_a_hundred_thousand_disturbed_calls(tmp_path: Path) -> None:
    assert disturbed(tmp_path, 3, 17_000, 2) >= 100_000
    assert await_all_free(tmp_path)


def test_the_witness_tells(tmp_path: Path) -> None:
    one, another = Witness(tmp_path, 1), Witness(tmp_path, 1)
    with one.one_more() as first, another.one_more() as second:
        assert (first, second) == (True, False)


# Interrupts


def interrupt_at_every_line(folder: str) -> None:
    """Raises KeyboardInterrupt at each line of ours in turn, of a first call in a new folder and of a later one."""
    from tests.support.interrupts import interrupted_everywhere
    from tests.support.processes import say

    kept = Leases(Path(folder))
    empty = Path(folder) / "empty"
    empty.mkdir()

    def later() -> None:
        with call(kept, 2, 0.0):
            pass

    def first() -> None:
        (empty / LEASES_FILE).unlink(missing_ok=True)
        with LimitedCall(Leases(empty), (Limit(QA, 20), Limit(NEURAL, 3)), 0.0):
            pass

    def refused() -> None:
        with pytest.raises(LimitReachedError), call(kept, 1, 0.001, key="pool:full"):
            pass

    def probing() -> None:
        probe = claim_probe(kept, "acme.Qa", 1, 0.0)
        if probe is not None:
            probe.end()

    def in_a_task() -> None:
        async def scene() -> None:
            async with AsyncLimitedCall(call(kept, 2, 0.0)):
                pass

        asyncio.run(scene())

    def is_free() -> bool:
        return all(all_free(path) for path in (kept.folder, empty) if (path / LEASES_FILE).exists())

    later()
    for work in (later, first, probing):
        say([work.__name__, interrupted_everywhere(work, is_free)])
    # asyncio keeps an interrupt, and with it all frames, in a cycle.
    say(["in_a_task", interrupted_everywhere(in_a_task, lambda: gc.collect() >= 0 and is_free())])
    with call(Leases(Path(folder)), 1, 0.0, key="pool:full"):
        say(["refused", interrupted_everywhere(refused, lambda: len(all_holders(kept)) == 1)])


def test_an_interrupt_at_any_line_leaks_nothing(tmp_path: Path) -> None:
    said = dict(run("tests.readers.test_leases", "interrupt_at_every_line", tmp_path))
    assert set(said) == {"later", "first", "probing", "in_a_task", "refused"}
    assert min(said.values()) > 20


# The file


def test_many_limits_in_one_file(leases: Leases, tmp_path: Path) -> None:
    keys = [f"module:acme.M{number}" for number in range(300)]
    with call(leases, 2, key=keys[0]):
        for key in keys[1:]:
            with call(leases, 100, key=key):
                pass
        with call(Leases(tmp_path), 2, key=keys[0]), pytest.raises(LimitReachedError):
            call(leases, 2, key=keys[0]).__enter__()
    assert lease_file_problems(tmp_path) == []
    assert [region.key for region in LeaseFile(tmp_path).regions()] == keys


def test_a_file_is_replaced_only_when_nobody_holds_anything(leases: Leases, tmp_path: Path) -> None:
    other = Leases(tmp_path)
    with call(leases):
        assert not compact_lease_file(tmp_path)
    with call(other):
        pass
    assert compact_lease_file(tmp_path)
    assert LeaseFile(tmp_path).end == REGIONS_AT
    with call(leases), pytest.raises(LimitReachedError):
        call(other).__enter__()


def test_a_killed_replacement_is_finished_by_the_next(leases: Leases, tmp_path: Path) -> None:
    with call(leases):
        pass
    LeaseFile(tmp_path).retire()  # killed before the new file was in place
    with call(leases), pytest.raises(LimitReachedError):
        call(Leases(tmp_path)).__enter__()


def test_it_is_for_user_and_group(tmp_path: Path) -> None:
    previous = os.umask(0o007)
    try:
        assert ensure_lease_file(tmp_path).stat().st_mode & 0o777 == 0o660
    finally:
        os.umask(previous)


@pytest.mark.parametrize(
    ("at", "written"),
    [(0, b"another "), (64, b"\xff" * 8), (64, bytes(8)), (REGIONS_AT, b"\x01"), (REGIONS_AT + 4, b"\xff" * 4)],
)
def test_damage_is_found(leases: Leases, tmp_path: Path, at: int, written: bytes) -> None:
    with call(leases):
        pass
    with (tmp_path / LEASES_FILE).open("r+b") as file:
        file.seek(at)
        file.write(written)
    assert len(lease_file_problems(tmp_path)) == 1
    with pytest.raises(StoreError, match="damaged"):
        call(Leases(tmp_path), key="module:another").__enter__()


# Probes


def test_one_process_probes_at_a_time(leases: Leases, tmp_path: Path) -> None:
    other = Leases(tmp_path)
    probe = claim_probe(leases, "acme.Qa", 3, 60.0)
    assert probe is not None
    assert claim_probe(other, "acme.Qa", 3, 60.0) is None
    assert claim_probe(other, "acme.Qa", 4, 60.0) is not None
    probe.end()
    probe.end()
    assert claim_probe(other, "acme.Qa", 3, 60.0) is not None
    assert all_free(tmp_path)


def test_anyone_probes_after_the_deadline(leases: Leases, tmp_path: Path) -> None:
    late = claim_probe(leases, "acme.Qa", 3, 0.0)
    second = claim_probe(Leases(tmp_path), "acme.Qa", 3, 60.0)
    assert late is not None
    assert second is not None
    late.end()  # not what the second one has
    assert claim_probe(leases, "acme.Qa", 3, 60.0) is None


def test_a_dead_process_probes_no_more(leases: Leases, tmp_path: Path) -> None:
    await_all(fork(lambda: claim_probe(leases, "acme.Qa", 3, 60.0)))
    assert claim_probe(leases, "acme.Qa", 3, 60.0) is not None
