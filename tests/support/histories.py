"""Writers that work through a schedule, one after the other, while readers in their own processes record all they see.

Shared numbers tell the readers what was acknowledged and what was started, as revisions after `base`, the revision of
the schedule's state 0. A writer may be killed: what it had not acknowledged is then there as a whole or not at all,
and the next writer goes on from there.
"""

from __future__ import annotations

import json
import mmap
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dspy_registry import Registry, RegistryWriter
from dspy_registry.registry_store.codec import open_record
from tests.support.processes import Process, child, say
from tests.support.schedule import Event, Schedule, State, ask, commit, prepare, verify

ACKNOWLEDGED, STARTED, DONE = 0, 1, 2
_QUESTIONS_OF_A_REVISION = 400


def counters(path: Path | str) -> memoryview:
    """A few shared numbers: what was acknowledged, what was started, whether all is done."""
    with Path(path).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 4096)).cast("d")


# In processes of their own


def write(folder: str, shared: str, base: int, seed: int, commits: int, first: int, last: int) -> None:
    """Make some commits of a schedule, and say each when it is acknowledged."""
    schedule, numbers = Schedule(seed, commits), counters(shared)
    with RegistryWriter(folder) as writer:
        for number in range(first, last + 1):
            numbers[STARTED] = writer.revision + 1 - base
            say([number, commit(writer, schedule.commits[number]) - base])


def read(folder: str, shared: str, base: int, seed: int, cache_size: int, threads: int) -> None:
    """Ask until all is done, and then a few hundred questions more; say what was heard in each thread."""
    if threads > 1:
        sys.setswitchinterval(1e-5)
    with Registry(folder, cache_size=cache_size) as registry, ThreadPoolExecutor(threads) as pool:
        numbers = counters(shared)
        seeds = [seed * 31 + cache_size * 7 + thread for thread in range(threads)]
        asking = [pool.submit(_ask_until_done, registry, numbers, base, each) for each in seeds]
        say("ready")
        histories = [history.result() for history in asking]
    say(histories)


def _ask_until_done(registry: Registry, numbers: memoryview, base: int, seed: int) -> list[Event]:
    history: list[Event] = []
    questions = iter(Schedule(seed, 0).questions(seed))
    rest = 300
    began, started = 0, -1.0
    while rest:
        rest -= numbers[DONE] == 1
        if numbers[STARTED] != started:
            began, started = len(history), numbers[STARTED]
        elif len(history) - began > _QUESTIONS_OF_A_REVISION and not numbers[DONE]:
            time.sleep(0.0002)  # nothing has been started since: what is asked now shows nothing that was not asked
            continue
        acknowledged, question = numbers[ACKNOWLEDGED], next(questions)
        history.append([acknowledged, question, ask(registry, question), numbers[STARTED]])
        if len(history) % 7 == 0:
            acknowledged = numbers[ACKNOWLEDGED]
            history.append([acknowledged, ["revision", None], registry.revision - base, numbers[STARTED]])
        if len(history) % 50 == 0:
            history += _of_one_snapshot(registry, base, numbers, questions)
    return history


def _of_one_snapshot(registry: Registry, base: int, numbers: memoryview, questions: Any) -> Iterable[Event]:
    """All that one snapshot says must be of its revision exactly: as if that had been acknowledged, and no more."""
    acknowledged = numbers[ACKNOWLEDGED]
    with registry.snapshot() as snapshot:
        exact = snapshot.revision - base
        yield [acknowledged, ["revision", None], exact, numbers[STARTED]]
        for _ in range(8):
            question = next(questions)
            yield [exact, question, ask(snapshot, question), exact]
        for name in snapshot:
            assert open_record(snapshot.raw(name), name) == snapshot.describe(name)
        log = [change.revision for change in snapshot.changes_since(base)]
        assert log == list(range(base + 1, snapshot.revision + 1))


# In the test


class Observation:
    """Readers at work on a registry in `folder`. `states[n]` is what the registry is at revision base + n."""

    def __init__(self, folder: Path, seed: int, commits: int, caches: tuple[int, ...], threads: int = 1) -> None:
        self.folder = folder
        self._threads = threads
        self.schedule = Schedule(seed, commits)
        self._seed = seed
        self._commits = commits
        self._shared = folder.with_suffix(".shared")
        self._shared.write_bytes(bytes(4096))
        self._numbers = counters(self._shared)
        with RegistryWriter(folder) as writer:
            self.base = prepare(writer)
        self.states: list[State] = [self.schedule.states[0]]
        self._done = 0
        self._stack = ExitStack()
        self._readers = [self._reader(size) for size in caches]

    def _reader(self, cache_size: int) -> Process:
        arguments = (self.folder, self._shared, self.base, self._seed, cache_size, self._threads)
        reader: Process = self._stack.enter_context(child(__name__, "read", *arguments))
        assert reader.hear() == "ready"
        return reader

    def __enter__(self) -> Observation:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def pids(self) -> list[int]:
        """The readers' processes."""
        return [reader.pid for reader in self._readers]

    @property
    def is_done(self) -> bool:
        return self._done == self._commits

    def let_write(self, commits: int, failpoints: str = "", kill_after: int | None = None) -> int:
        """One writer makes so many commits, unless it is killed; its exit status."""
        last = min(self._done + commits, self._commits)
        arguments = (self.folder, self._shared, self.base, self._seed, self._commits, self._done + 1, last)
        environment = {"DSPY_REGISTRY_FAILPOINTS": failpoints} if failpoints else {}
        with child(__name__, "write", *arguments, **environment) as writing:
            heard = 0
            while heard != kill_after and (answer := writing.hear()) is not None:
                self._acknowledge(*answer)
                heard += 1
            if kill_after is not None:
                writing._process.kill()
                for answer in writing.heard():  # said before it died
                    self._acknowledge(*answer)
            status = writing.close()
        if status:
            self._take_stock()
        return status

    def _acknowledge(self, number: int, revision: int) -> None:
        assert (number, revision) == (self._done + 1, len(self.states))
        self._done = number
        self.states.append(self.schedule.states[number])
        self._numbers[ACKNOWLEDGED] = revision

    def _take_stock(self) -> None:
        """After a kill: all acknowledged is there; the commit under way landed as a whole, or it left no trace.

        It is looked at before and after a writer has opened the registry, and can only have come in between: LMDB
        syncs a commit a few instructions before it shows it to readers, and its next writer shows what was synced.
        """
        before = self._landed()
        with RegistryWriter(self.folder) as writer:
            revision = writer.revision - self.base
            landed = self._landed()
        assert landed or not before
        assert len(self.states) - 1 <= revision <= len(self.states)
        self._done += landed
        if revision == len(self.states):  # at least its revision is used up
            self.states.append(self.schedule.states[self._done])

    def _landed(self) -> bool:
        """Whether the first unacknowledged commit is there. When all are acknowledged, there is none."""
        if self.is_done:
            return False
        with Registry(self.folder) as registry, registry.snapshot() as snapshot:
            found = dict(snapshot)
        now, then = self.schedule.states[self._done], self.schedule.states[min(self._done + 1, self._commits)]
        assert list(found.items()) in (list(now.modules.items()), list(then.modules.items()))
        if now.modules != then.modules:
            return list(found.items()) != list(now.modules.items())
        with Registry(self.folder) as registry:  # aliases or implications only
            landed = {_alias_of(registry, alias) == then.aliases.get(alias) for alias in (*now.aliases, *then.aliases)}
            return landed == {True}

    def finish(self) -> None:
        """All is done: let the readers tell their histories, and judge them. A wrong one is saved."""
        self._numbers[DONE] = 1
        recorded = [history for reader in self._readers for history in reader.hear()]
        wrong = [problem for history in recorded if (problem := verify(self.states, history))]
        saved = self.folder.with_suffix(".histories.json")
        if wrong:
            saved.write_text(json.dumps(recorded))
        assert wrong == [], f"histories saved in {saved}"
        assert all(len(history) > 300 for history in recorded)


def _alias_of(registry: Registry, alias: str) -> str | None:
    """What a declared alias means; None for what merely looks like one."""
    from dspy_registry import UnknownModuleError

    try:
        return registry.get_module(alias).name
    except UnknownModuleError:
        return None
