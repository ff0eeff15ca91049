"""Kills, and disks that refuse: what was acknowledged is there afterwards, and readers are right throughout.

The incidents these guard against: a writer that dies with the word odd, so that readers serve what the lost commit
would have changed; one that dies after the commit and before the word, so that a restart makes the revision again;
two commits under one odd word, so that a reader takes the announcement of one for the other's.

kill -9 proves what happens when a process dies. It proves nothing about a power failure: what the process had written
is in the kernel's page cache and reaches the disk all the same.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter, StoreError, WriterLockedError
from dspy_registry.registry_store.revision import RevisionFile, committed, under_way
from dspy_registry.writer.core_modules import CORE_MODULES
from dspy_registry.writer.failpoints import NAMES
from tests.conftest import violations
from tests.readers.test_dead_readers import size
from tests.support import ROOT
from tests.support.histories import Observation
from tests.support.processes import child, requests, run, say
from tests.support.selection import each

KILLED = -signal.SIGKILL


@pytest.mark.parametrize("failpoint", NAMES)
@pytest.mark.parametrize("commits", [20, pytest.param(40, marks=pytest.mark.full)])
def test_i11_a_writer_killed_at_a_named_point_loses_nothing_acknowledged(
    registry_folder: Path, failpoint: str, commits: int
) -> None:
    """Readers ask all the while, cached too: before the kill, while the word is odd, after a writer has come back."""
    with Observation(registry_folder, NAMES.index(failpoint), commits, (8192, 4)) as observation:
        for number in (7, 1, 1, 4):  # twice more at the very first commit: the same revision over again
            assert observation.let_write(commits, f"{failpoint}=kill@{number}") == KILLED
        while not observation.is_done:
            assert observation.let_write(commits) == 0
        observation.finish()


@pytest.mark.parametrize(("commits", "kills"), [(15, 2), pytest.param(60, 6, marks=pytest.mark.full)])
def test_i11_a_writer_killed_anywhere_loses_nothing_acknowledged(
    registry_folder: Path, commits: int, kills: int
) -> None:
    kill_at_random(registry_folder, 5, commits, kills)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(6))
def test_many_kills(registry_folder: Path, seed: int) -> None:
    kill_at_random(registry_folder, seed, 3000, 120)


def kill_at_random(folder: Path, seed: int, commits: int, kills: int) -> None:
    """The kill falls where it falls in the commit after the last one heard."""
    chance = random.Random(seed)
    with Observation(folder, seed, commits, (8192, 4)) as observation:
        for _ in range(kills):
            failpoints = chance.choice(("", "before_commit=sleep:1", "before_even_word=sleep:1"))
            observation.let_write(commits, failpoints, kill_after=chance.randrange(1, max(2, commits // kills)))
        while not observation.is_done:
            assert observation.let_write(commits) == 0
        observation.finish()


# The word after a kill


def update_once(folder: str, duration: int) -> None:
    with RegistryWriter(folder) as writer:
        say("ready")
        say(writer.register_module(ModuleInfo("dspy.ReAct", estimated_duration=duration)))


WORD_AFTER = {  # relative to the revision before; and whether the commit landed
    "before_odd_word": (committed(0), False),
    "before_commit": (under_way(1), False),
    "before_even_word": (under_way(1), True),
    "before_acknowledgement": (committed(1), True),
}


@pytest.mark.parametrize("failpoint", each(2, NAMES))
def test_i2_the_word_after_a_kill_is_mended_by_the_next_writer(registry_folder: Path, failpoint: str) -> None:
    with RegistryWriter(registry_folder) as writer:
        revision = writer.revision
    words = [committed(revision)]
    with Registry(registry_folder) as live:
        for _ in range(3):
            assert live.get_module("dspy.ReAct").estimated_duration == 5000
        for duration in (1, 2, 3):  # killed at the same point again and again
            before = live.get_module("dspy.ReAct").estimated_duration
            environment = {"DSPY_REGISTRY_FAILPOINTS": f"{failpoint}=kill"}
            with child(__name__, "update_once", registry_folder, duration, **environment) as writing:
                assert writing.heard() == ["ready"]
                assert writing.wait() == KILLED
            added, landed = WORD_AFTER[failpoint]
            words.append(RevisionFile(registry_folder).word[()])
            assert words[-1] == committed(revision) + added
            for _ in range(3):
                for registry in (live, Registry(registry_folder)):
                    assert registry.get_module("dspy.ReAct").estimated_duration == (duration if landed else before)
                    assert registry.revision == revision + landed
                    assert registry.get_module("dspy.Predict").estimated_duration == 1000
            with RegistryWriter(registry_folder) as writer:
                revision = writer.revision
                words.append(RevisionFile(registry_folder).word[()])
                assert words[-1] == committed(revision)
                assert live.revision == revision
                assert live.get_module("dspy.ReAct").estimated_duration == (duration if landed else before)
    in_order = [word if word % 2 == 0 else word - 2 for word in words]  # odd of a revision comes before its even
    assert in_order == sorted(in_order)


@pytest.mark.parametrize("failpoint", each(2, NAMES))
def test_i11_a_registry_whose_seeding_was_killed_is_seeded_by_the_next_writer(
    registry_folder: Path, failpoint: str
) -> None:
    environment = {"DSPY_REGISTRY_FAILPOINTS": f"{failpoint}=kill"}
    for _ in range(2):
        with child(__name__, "update_once", registry_folder, 1, **environment) as writing:
            writing.heard()
            assert writing.wait() == KILLED
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry:
        assert list(registry) == [info.name for info in CORE_MODULES]


# One writer


def open_and_wait(folder: str) -> None:
    with RegistryWriter(folder) as writer:
        say(writer.revision)
        for message in requests():
            say(writer.register_module(ModuleInfo("a.B", estimated_duration=message)))


def test_i12_a_second_writer_is_refused_with_the_pid_of_the_first(registry_folder: Path) -> None:
    with child(__name__, "open_and_wait", registry_folder) as first:
        revision = first.hear()
        for _ in range(3):
            with pytest.raises(WriterLockedError) as caught:
                RegistryWriter(registry_folder)
            assert caught.value.pid == first.pid
            assert isinstance(caught.value, BlockingIOError)
            with Registry(registry_folder) as registry:  # nor does reading cost it its writer lock
                assert registry.revision == revision
        revision = first.ask(1)
        first.kill()
    with RegistryWriter(registry_folder) as writer:  # at once: the writer lock ended with the process
        assert writer.revision == revision
        with pytest.raises(WriterLockedError) as caught:
            RegistryWriter(registry_folder)
        assert caught.value.pid == os.getpid()
        assert writer.register_module(ModuleInfo("a.B", estimated_duration=2)) == revision + 1
    with child(__name__, "open_and_wait", registry_folder) as second:
        assert second.hear() == revision + 1
        assert second.close() == 0


def test_i12_a_closed_writer_writes_no_more(registry_folder: Path) -> None:
    from dspy_registry import StoreClosedError

    writer = RegistryWriter(registry_folder)
    committer = writer.store.committer  # as a thread has it that is waiting for its turn
    writer.close()
    writer.close()
    with RegistryWriter(registry_folder) as other:
        for late in (lambda: writer.register_module(ModuleInfo("a.B")), lambda: committer.commit(lambda draft: None)):
            with pytest.raises(StoreClosedError):
                late()
        assert other.register_module(ModuleInfo("a.B")) == other.revision


# A disk that refuses


def write_on_a_full_disk(folder: str) -> None:
    """RLIMIT_FSIZE makes writes beyond a size fail, as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        registry.get_module("dspy.ReAct")
        revision, (soft, hard) = writer.revision, resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size(Path(folder)), hard))
        batch = [ModuleInfo(f"a.M{i}", metadata={"text": "x" * 3000}) for i in range(100)]
        batch.append(ModuleInfo("dspy.ReAct", estimated_duration=1))
        for _ in range(3):
            try:
                writer.register_modules(batch)
            except StoreError as error:
                say([folder in error.message, isinstance(error.__cause__, lmdb.Error)])
            for _ in range(3):
                assert registry.get_module("dspy.ReAct").estimated_duration == 5000
            assert (registry.revision, len(registry)) == (revision, 6)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert writer.register_modules(batch) == registry.revision
        assert len(registry) == 106
        for _ in range(3):
            assert registry.get_module("dspy.ReAct").estimated_duration == 1


def test_i11_a_commit_that_the_disk_refuses_changes_nothing_and_the_next_one_works(registry_folder: Path) -> None:
    said = run(__name__, "write_on_a_full_disk", registry_folder)
    assert said == [[True, True]] * 3


# Faults and kills at every system call, where strace is there to inject them


def can_trace() -> bool:
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-o", os.devnull, "true"], check=False).returncode == 0


needs_strace = pytest.mark.skipif(not can_trace(), reason="strace cannot trace here")


def trace(inject: str, function: str, *arguments: object) -> tuple[int, list[str]]:
    """Run a function of this module with a fault injected; exit status and what it said."""
    paths = [str(ROOT)]
    start = f"import sys; sys.path[:0] = {paths!r}; import {__name__} as t; t.{function}(*sys.argv[1:])"
    command = ["strace", "-f", "-o", os.devnull, "-e", f"inject={inject}", sys.executable, "-c", start]
    done = subprocess.run([*command, *map(str, arguments)], stdout=subprocess.PIPE, check=False, text=True)
    return done.returncode, done.stdout.splitlines()


def write_until_refused(folder: str) -> None:
    with RegistryWriter(folder) as writer:
        for number in range(1, 8):
            try:
                say([number, writer.register_module(ModuleInfo("a.B", estimated_duration=number))])
            except StoreError as error:
                say([number, str(error)])


@needs_strace
def test_i11_after_an_error_of_the_disk_the_writer_trusts_nothing(registry_folder: Path) -> None:
    """After EIO from a sync the next one may say ok although the pages are lost: stop, and say so."""
    with RegistryWriter(registry_folder):
        pass
    status, said = trace("fdatasync:error=EIO:when=3", "write_until_refused", registry_folder)
    assert status == 0
    answers = [eval(line) for line in said]
    refused = [text for _, text in answers if isinstance(text, str)]
    assert len(refused) >= 4
    assert len(set(refused[1:])) == 1  # it tries no more
    assert all(isinstance(text, str) for _, text in answers[answers.index([7 - len(refused) + 1, refused[0]]) :])
    acknowledged = 7 - len(refused)
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry:
        assert registry["a.B"].estimated_duration in (acknowledged, acknowledged + 1)


SYSTEM_CALLS = (
    "pwrite64",
    "pwritev",
    "fdatasync",
    "ftruncate",
    "rename",
    "fsync",
    "fallocate",
    "openat",
    "flock",
    "mmap",
)


@needs_strace
@pytest.mark.stress
@pytest.mark.parametrize("call", SYSTEM_CALLS)
def test_killed_at_every_system_call_from_the_creation_on(tmp_path: Path, call: str) -> None:
    """A writer that makes a registry and seven commits, killed at the first such call, the second, and so on."""
    for number in range(1, 400):
        folder = tmp_path / f"{call}{number}"
        status, said = trace(f"{call}:signal=SIGKILL:when={number}", "write_until_refused", folder)
        acknowledged = eval(said[-1])[0] if said else 0
        if folder.exists():
            with RegistryWriter(folder), Registry(folder) as registry:
                assert list(registry)[:6] == [info.name for info in CORE_MODULES]
                info = registry.get("a.B")
                assert (info.estimated_duration if info else 0) in (acknowledged, acknowledged + 1)
            assert violations(folder) == []
        if status == 0:
            return
    raise AssertionError("it never came to its end")
