"""A writer that forks: its child is not the writer (I15), and its writer lock ends as if there were no child (I12)."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryError, RegistryWriter, StoreClosedError, WriterLockedError
from dspy_registry.registry_store import sharing
from dspy_registry.writer.writer_lock import lock_holder
from tests.support import forks
from tests.support.forks import await_all, durations, fork, update
from tests.support.processes import child, run, say

folder = forks.folder


def forks_with_a_writer(folder: str) -> None:
    writer, registry = RegistryWriter(folder), Registry(folder)
    parent = os.getpid()

    def in_child() -> None:
        for late in (lambda: update(writer, 5), lambda: writer.revision, lambda: writer.set_alias("x", "a.M1")):
            with pytest.raises(StoreClosedError):
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
        with pytest.raises(StoreClosedError):
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
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]  # one has the number that the writer lock had
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
    """A fork while the writer lock is looked at: the child has the file, and must not keep others out."""
    RegistryWriter(folder).close()
    flock, children = fcntl.flock, []

    def forking(file: int, operation: int) -> None:
        flock(file, operation)
        if operation & fcntl.LOCK_SH:
            children.append(fork(signal.pause))

    fcntl.flock = forking
    try:
        assert lock_holder(Path(folder)) is None
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
