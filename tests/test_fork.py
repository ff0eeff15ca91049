"""A registry opened before a fork works on both sides of it, and neither side disturbs the other (I15).

Each scene plays in a process of its own that holds nothing of pytest's; what a forked child finds wrong is its exit
status.
"""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import child, requests, run, say

from readers import Registry
from registry_store import ForkedSnapshotError, ModuleInfo, RegistryError, StoreClosedError, WriterLockedError, sharing
from registry_store.sharing import attach, detach
from writer import RegistryWriter
from writer.lease import lease_holder

NAMES = [f"a.M{number}" for number in range(50)]


@pytest.fixture
def folder(registry_folder: Path) -> Path:
    with RegistryWriter(registry_folder) as writer:
        update(writer, 0)
    return registry_folder


def update(writer: RegistryWriter, duration: int) -> int:
    return writer.register_modules([ModuleInfo(name, estimated_duration=duration) for name in NAMES])


def keep_writing(folder: str) -> None:
    """A writer that updates all modules at once each time it is told to."""
    with RegistryWriter(folder) as writer:
        say("ready")
        for duration in requests():
            say(update(writer, duration))


def fork(work: Callable[[], object]) -> int:
    """The pid of a forked child that does some work and ends, with status 1 if it went wrong."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return pid


def await_all(*pids: int) -> None:
    """Wait for forked children, which must all have found everything right."""
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * len(pids)


def durations(queries: Any) -> set[int]:
    """Of all modules: one number, however many are asked, in a registry that is updated as a whole."""
    return {queries.get_module(name).estimated_duration for name in NAMES}


def slots(folder: str) -> list[int]:
    """The processes that hold reader slots, as often as they hold one."""
    environment = attach(Path(folder))
    try:
        with environment.reading():
            lines = environment.lmdb.readers().splitlines()
        return [int(line.split()[0]) for line in lines[1:] if line.strip()]
    finally:
        detach(environment)


def free_slots_of_the_dead(folder: str) -> None:
    environment = attach(Path(folder))
    with environment.reading():
        environment.lmdb.reader_check()
    detach(environment)


# Readers


def reads_on_both_sides(folder: str) -> None:
    for size in (8192, 0):
        registry = Registry(folder, cache_size=size)
        for _ in range(3):
            assert durations(registry) == {0}

        def read(registry: Registry = registry) -> None:
            for _ in range(3):
                assert durations(registry) == {0}
            with registry.snapshot() as snapshot:
                assert durations(snapshot) == {0}
            assert len(registry) == len(NAMES) + 6
            assert os.getpid() in slots(folder)
            await_all(fork(lambda: durations(registry)))  # and a grandchild

        for _ in range(3):
            await_all(*(fork(read) for _ in range(3)))
            read()


def test_i15_parent_children_and_grandchildren_read_what_the_parent_opened(folder: Path) -> None:
    run(__name__, "reads_on_both_sides", folder)


def stays_fresh(folder: str) -> None:
    with child(__name__, "keep_writing", folder) as writing, Registry(folder) as registry:
        assert writing.hear() == "ready"
        for _ in range(3):
            assert durations(registry) == {0}
        from_parent, to_child = os.pipe()

        def follow() -> None:
            for duration in range(1, 6):
                assert os.read(from_parent, 1) == b"."
                assert durations(registry) == {duration}
                assert registry.get_module("predict").name == "dspy.Predict"
                to_parent.send("read")

        hearing, to_parent = multiprocessing.Pipe(duplex=False)
        pid = fork(follow)
        for duration in range(1, 6):
            writing.ask(duration)
            assert durations(registry) == {duration}
            os.write(to_child, b".")
            assert hearing.recv() == "read"
        await_all(pid)


def test_i15_both_sides_see_what_is_acknowledged_after_the_fork(folder: Path) -> None:
    run(__name__, "stays_fresh", folder)


def kills_children(folder: str) -> None:
    """As a prefork server does: the parent opens, the children serve and are killed."""
    with child(__name__, "keep_writing", folder) as writing, Registry(folder) as registry:
        assert writing.hear() == "ready"
        assert durations(registry) == {0}
        ready, tell = os.pipe()

        def serve() -> None:
            snapshot = registry.snapshot()
            durations(snapshot)
            os.write(tell, b".")
            while True:
                durations(registry)

        for duration in range(1, 4):
            with registry.snapshot() as snapshot:
                before = durations(snapshot)
            pids = [fork(serve) for _ in range(3)]
            for _ in pids:
                os.read(ready, 1)
            with registry.snapshot() as snapshot:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                for pid in pids:
                    os.waitpid(pid, 0)
                free_slots_of_the_dead(folder)
                for _ in range(30):
                    writing.ask(duration)
                assert durations(snapshot) == before
            assert durations(registry) == {duration}
            assert set(slots(folder)) <= {os.getpid(), writing.pid}


def test_i15_a_killed_child_takes_nothing_of_its_parent_along(folder: Path) -> None:
    run(__name__, "kills_children", folder)


# A snapshot that is open at the fork


def forks_with_a_snapshot(folder: str) -> None:
    with child(__name__, "keep_writing", folder) as writing, Registry(folder) as registry:
        assert writing.hear() == "ready"
        snapshot = registry.snapshot()

        def cached() -> None:
            assert registry.get_module("a.M1").name == "a.M1"
            assert registry.find_by_capability("reasoning")

        def in_child(ending: Callable[[], object]) -> None:
            cached()
            for ask in (
                lambda: registry.get_module("a.M2"),
                lambda: registry.find(pool_type="neural"),
                lambda: list(registry),
                lambda: snapshot.get_module("a.M1"),
                lambda: snapshot.raw("a.M1"),
                lambda: list(snapshot),
                registry.snapshot,
                lambda: Registry(folder),
            ):
                with pytest.raises(ForkedSnapshotError, match="fork"):
                    ask()
            ending()

        def close_all() -> None:
            snapshot.close()
            registry.close()
            gc.collect()

        for ending in (lambda: None, close_all, gc.collect, lambda: sys.exit()):
            for _ in range(3):
                cached()
            await_all(fork(lambda ending=ending: leaving(lambda: in_child(ending))))
            for duration in range(20):
                writing.ask(duration)
            assert durations(snapshot) == {0}
            assert len(snapshot) == 56
        snapshot.close()
        assert durations(registry) == {19}
        await_all(fork(lambda: durations(registry)))  # without a snapshot all is well again


def leaving(work: Callable[[], object]) -> None:
    """Leave as a process does that ends by itself."""
    with suppress(SystemExit):
        work()


def test_i15_a_snapshot_stays_its_parents_and_the_child_is_told(folder: Path) -> None:
    run(__name__, "forks_with_a_snapshot", folder)


def forks_after_dropping_a_snapshot(folder: str) -> None:
    with Registry(folder) as registry:
        snapshot: Any = registry.snapshot()
        holder = [snapshot]
        holder.append(holder)  # a cycle: nobody closes it but the collector
        del snapshot, holder
        gc.collect()
        await_all(fork(lambda: durations(registry)))
        assert durations(registry) == {0}


def test_i15_a_snapshot_that_nobody_holds_any_more_costs_the_child_nothing(folder: Path) -> None:
    run(__name__, "forks_after_dropping_a_snapshot", folder)


# Writers


def forks_with_a_writer(folder: str) -> None:
    writer, registry = RegistryWriter(folder), Registry(folder)
    parent = os.getpid()

    def in_child() -> None:
        for late in (lambda: update(writer, 5), lambda: writer.revision, lambda: writer.set_alias("x", "a.M1")):
            with pytest.raises(StoreClosedError, match="belongs to the process this one was forked from"):
                late()
        with pytest.raises(WriterLockedError) as caught:
            RegistryWriter(folder)
        assert caught.value.pid == parent
        writer.close()
        assert durations(registry) == durations(Registry(folder))

    for duration in range(1, 5):
        update(writer, duration)
        await_all(fork(in_child))
        assert durations(registry) == {duration}
    with pytest.raises(WriterLockedError):
        RegistryWriter(folder)
    update(writer, 9)
    assert durations(registry) == {9}


def test_i15_a_child_is_not_the_writer(folder: Path) -> None:
    run(__name__, "forks_with_a_writer", folder)


def dies_with_children(folder: str) -> None:
    writer = RegistryWriter(folder)
    update(writer, 1)
    say(fork(lambda: signal.pause()))
    say(os.getpid())
    signal.pause()


def test_i12_the_lease_ends_with_the_writer_though_its_children_live(folder: Path) -> None:
    with child(__name__, "dies_with_children", folder) as parent:
        orphan = parent.hear()
        parent.hear()
        parent.kill()
        try:
            with RegistryWriter(folder) as writer:
                update(writer, 2)
            os.kill(orphan, 0)  # it is alive all the while
        finally:
            os.kill(orphan, signal.SIGKILL)


def open_once(folder: str) -> None:
    """Says the revision, or which process is the writer."""
    try:
        with RegistryWriter(folder) as writer:
            say(writer.revision)
    except WriterLockedError as error:
        say(f"held by {error.pid}")


def drops_writers(folder: str) -> None:
    """Nobody closes them. What is collected may be so anywhere, under any lock."""
    revision = 0
    for number in range(1, 4):
        writer: Any = RegistryWriter(folder)
        revision = update(writer, number)
        environment = writer.store.environment
        assert run(__name__, "open_once", folder) == [f"held by {os.getpid()}"]
        holder = [writer]
        holder.append(holder)  # a cycle: nobody lets go of it but the collector
        del writer, holder
        with sharing.shared_lock, environment.write_gate, environment.gate:
            collecting = threading.Thread(target=gc.collect)
            collecting.start()
            collecting.join()
        assert run(__name__, "open_once", folder) == [revision]
        sharing.run_deferred()
        assert environment.users == 0
    with RegistryWriter(folder) as last, Registry(folder) as registry:
        assert update(last, 9) == registry.revision == revision + 1
        assert durations(registry) == {9}


def test_i12_a_writer_that_nobody_holds_any_more_is_none(folder: Path) -> None:
    run(__name__, "drops_writers", folder)


def dies_with_a_dropped_writer(folder: str) -> None:
    def use() -> None:
        update(RegistryWriter(folder), 1)

    gc.disable()
    use()
    writer: Any = RegistryWriter(folder)
    holder = [writer]
    holder.append(holder)
    del writer, holder  # garbage, and not collected
    say(fork(lambda: signal.pause()))
    say(fork(lambda: (gc.collect(), signal.pause())))
    signal.pause()


def test_i12_the_lease_of_a_dropped_writer_ends_with_the_process_though_its_children_live(folder: Path) -> None:
    with child(__name__, "dies_with_a_dropped_writer", folder) as parent:
        orphans = [parent.hear(), parent.hear()]
        try:
            assert run(__name__, "open_once", folder) == [f"held by {parent.pid}"]
            parent.kill()
            with RegistryWriter(folder) as writer:
                update(writer, 2)
            for orphan in orphans:
                os.kill(orphan, 0)
        finally:
            for orphan in orphans:
                os.kill(orphan, signal.SIGKILL)


def commits_without_a_writer(folder: str) -> None:
    """The commit path alone is held, as a thread has it that is in the midst of a commit."""
    writer: Any = RegistryWriter(folder)
    committer: Any = writer.store.committer

    def staged(draft: Any) -> None:
        nonlocal writer
        writer = None
        gc.collect()
        assert run(__name__, "open_once", folder) == [f"held by {os.getpid()}"]
        draft.register(ModuleInfo("a.Late"))

    revision = committer.commit(staged)

    def in_child() -> None:
        with pytest.raises(StoreClosedError, match="belongs to the process this one was forked from"):
            committer.commit(lambda draft: draft.register(ModuleInfo("a.Child")))

    await_all(fork(in_child))
    assert committer.commit(lambda draft: draft.register(ModuleInfo("a.Later"))) == revision + 1
    committer = None
    assert run(__name__, "open_once", folder) == [revision + 1]


def test_i12_the_lease_is_held_as_long_as_anybody_can_commit(folder: Path) -> None:
    run(__name__, "commits_without_a_writer", folder)


def collects_in_a_child(folder: str) -> None:
    writer: Any = RegistryWriter(folder)
    revision = update(writer, 1)

    def in_child() -> None:
        nonlocal writer
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]  # one has the number that the lease had
        writer = None
        gc.collect()
        for file in files:
            os.fstat(file)

    await_all(fork(in_child))
    assert run(__name__, "open_once", folder) == [f"held by {os.getpid()}"]
    assert update(writer, 2) == revision + 1


def test_i15_what_a_child_collects_is_neither_its_own_nor_its_parents_loss(folder: Path) -> None:
    run(__name__, "collects_in_a_child", folder)


def forks_in_the_midst_of_a_look(folder: str) -> None:
    """A fork while the lease is looked at: the child has the file, and must not keep others out."""
    RegistryWriter(folder).close()
    flock, children = fcntl.flock, []

    def forking(file: int, operation: int) -> None:
        flock(file, operation)
        if operation & fcntl.LOCK_SH:
            children.append(fork(signal.pause))

    fcntl.flock = forking
    try:
        assert lease_holder(Path(folder)) is None
        fcntl.flock = flock
        RegistryWriter(folder).close()
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
    assert len(children) == 1


def test_i12_a_look_at_the_lease_keeps_nobody_out(folder: Path) -> None:
    run(__name__, "forks_in_the_midst_of_a_look", folder)


def forks_in_a_commit(folder: str) -> None:
    """Nobody should; and yet it must neither hang nor harm."""
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        revision = writer.revision

        def staged(draft: Any) -> None:
            draft.register(ModuleInfo("a.Forked"))
            await_all(fork(lambda: None))

        with suppress(RegistryError):
            writer.store.committer.commit(staged)
        landed = writer.revision - revision
        assert ("a.Forked" in registry) == bool(landed)
        assert writer.register_module(ModuleInfo("a.After")) == revision + landed + 1 == registry.revision


def test_i15_a_fork_in_the_midst_of_a_commit_is_survived(folder: Path) -> None:
    run(__name__, "forks_in_a_commit", folder)


# Threads


class Threads:
    """Threads that repeat their work until they are stopped; what goes wrong in one is told then."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self._wrong: list[BaseException] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(work,)) for work in works]

    def _repeat(self, work: Callable[[], object]) -> None:
        try:
            while not self._is_over.is_set():
                work()
        except BaseException as error:
            self._wrong.append(error)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        for error in self._wrong:
            raise error


def forks_amid_threads(folder: str) -> None:
    """Threads read in every way, and another one writes, while the main thread forks again and again."""
    shared = Registry(folder)
    rounds = iter(range(10**9))

    def uncached() -> None:
        with Registry(folder, cache_size=0) as registry:
            for name in NAMES:
                registry.get_module(name)

    def of_a_snapshot() -> None:
        with shared.snapshot() as snapshot:
            assert len(durations(snapshot)) == 1

    def in_child() -> None:
        assert len(durations(shared)) >= 1
        of_a_snapshot()
        assert len(Registry(folder)) == 56

    with RegistryWriter(folder) as writer:
        works = (uncached, lambda: durations(shared), lambda: update(writer, next(rounds)), lambda: list(shared))
        with Threads(*works):
            for _ in range(25):
                await_all(fork(in_child), fork(in_child))
                of_a_snapshot()


def test_i15_forks_amid_threads_that_read_and_write(folder: Path) -> None:
    run(__name__, "forks_amid_threads", folder)


def forks_often(folder: str) -> None:
    with Registry(folder) as registry:
        durations(registry)
        await_all(fork(lambda: None))
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(60):
            await_all(fork(lambda: registry.get_module("a.M1")))
            registry.get_module("a.M2")
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert slots(folder).count(os.getpid()) <= 3


def test_i15_forking_often_leaks_nothing(folder: Path) -> None:
    run(__name__, "forks_often", folder)


def warns_of_nothing(folder: str) -> None:
    import warnings

    warnings.simplefilter("error")  # since 3.12 a fork warns where there are threads: we start none
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        update(writer, 1)
        await_all(fork(lambda: durations(registry)))


def test_i15_reading_and_writing_start_no_threads(folder: Path) -> None:
    run(__name__, "warns_of_nothing", folder)


# multiprocessing

opened: list[Registry] = []


def ask_in_pool(argument: tuple[str, str]) -> int:
    """In a worker: with what it inherited, or what it opens itself."""
    folder, name = argument
    if not opened:
        opened.append(Registry(folder))
    return opened[0].get_module(name).estimated_duration


def asks_in_pools(folder: str, method: str) -> None:
    opened.append(Registry(folder))
    opened[0].get_module("a.M1")
    with RegistryWriter(folder) as writer:
        context: Any = multiprocessing.get_context(method)
        with context.Pool(3) as pool:
            for duration in range(1, 5):
                update(writer, duration)
                assert set(pool.map(ask_in_pool, [(folder, name) for name in NAMES], chunksize=5)) == {duration}
                assert durations(opened[0]) == {duration}


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_i15_pools_of_every_kind(folder: Path, method: str) -> None:
    run(__name__, "asks_in_pools", folder, method)


def forks_amid_a_crowded_cache(folder: str) -> None:
    """Each read by another thread may be one that keeps its record, for which it takes the gate."""
    with Registry(folder, cache_size=1) as registry, Threads(*[lambda: durations(registry)] * 3):
        for _ in range(40):
            await_all(fork(lambda: durations(registry)))


def test_i15_keeping_a_record_never_waits_in_flight_for_the_gate(folder: Path) -> None:
    """A fork holds the gate until nothing is in flight: who is in flight and wants the gate would stop both."""
    run(__name__, "forks_amid_a_crowded_cache", folder)
