"""Readers that are killed, stopped, or hold on; and a reader table that is full."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lmdb

from dspy_registry import (
    ModuleInfo,
    Registry,
    RegistryError,
    RegistryWriter,
    Snapshot,
    WriterClient,
    WriterTimeoutError,
)
from dspy_registry.registry_store import layout
from dspy_registry.writer.daemon.lifecycle import Daemon
from tests.stress.apart import Apart, Say, asked
from tests.stress.faults import Fault
from tests.stress.oracle import attempt, check_finds, complaint
from tests.stress.scenes import tries_of

_NAMES = tuple(f"a.M{number}" for number in range(20))
_SLOTS = 8


def _update(writer: RegistryWriter, value: int) -> int:
    return writer.register_modules(
        [ModuleInfo(name, estimated_duration=value, metadata={"text": f"{value:06}" * 100}) for name in _NAMES]
    )


def _values(queries: Any) -> set[int]:
    return {queries.get_module(name).estimated_duration for name in _NAMES}


def _reads_on(folder: Path) -> Callable[[Say, Callable[[], Any]], None]:
    """Says "ready", then reads without an end; what is not one revision ends it badly."""

    def work(say: Say, _: object) -> None:
        registry = Registry(folder, cache_size=4)
        _values(registry)
        say("ready")
        while True:
            with registry.snapshot() as snapshot:
                assert len(_values(snapshot)) == 1
            _values(registry)

    return work


def _holds(folder: Path) -> Callable[[Say, Callable[[], Any]], None]:
    """Holds a snapshot; says its value whenever it is asked."""

    def work(say: Say, hear: Callable[[], Any]) -> None:
        with Registry(folder) as registry, registry.snapshot() as snapshot:
            say("ready")
            while hear() is not None:
                say(sorted(_values(snapshot)))

    return work


def _size(folder: Path) -> int:
    return (folder / layout.DATA_FILE).stat().st_size


def _killed(folder: Path, chance: random.Random) -> list[str]:
    """The writer goes on, the slots are freed, and the pages are used again."""
    problems: list[str] = []
    with ExitStack() as stack:
        value = 0
        asked(lambda: _commit_all(folder, [0]))
        for _ in range(6):
            readers = [stack.enter_context(Apart(_reads_on(folder))) for _ in range(2)]
            heard = [reader.hear() for reader in readers]
            if heard != ["ready", "ready"]:
                problems.append(f"a reader says {heard}")
            values = list(range(value + 1, value + chance.randint(3, 30)))
            value = values[-1]
            _, wrong = asked(lambda values=values: _commit_all(folder, values))
            problems += [f"the writer beside readers: {wrong}"] * bool(wrong)
            for reader in readers:
                reader.kill()
                if (status := reader.wait()) != -signal.SIGKILL:
                    problems.append(f"a reader ended with {status}")
        settled = _size(folder)
        _, wrong = asked(lambda: _commit_all(folder, range(value + 1, value + 300)))
        left, failed = asked(lambda: _slots(folder))
        if wrong or failed or left:
            problems.append(wrong or failed or f"slots are left of {left}")
        if _size(folder) > 2 * settled:
            problems.append(f"the file grew from {settled:,} to {_size(folder):,} bytes")
    return problems + check_finds(folder)


def _commit_all(folder: Path, values: Any) -> None:
    with RegistryWriter(folder) as writer:
        for value in values:
            _update(writer, value)


def _slots(folder: Path) -> list[int]:
    """The processes that hold slots. For a process of its own: LMDB opens no folder twice in one."""
    with lmdb.open(str(folder), readonly=True, max_dbs=64) as env:
        lines = env.readers().splitlines()[1:]
    return sorted({int(line.split()[0]) for line in lines if line.strip()})


def _held(folder: Path, chance: random.Random) -> list[str]:
    """A snapshot is one revision for as long as it is held, whatever happens meanwhile."""
    asked(lambda: _commit_all(folder, [7]))
    problems: list[str] = []
    with Apart(_holds(folder)) as holder:
        holder.hear()
        for round_ in range(4):
            _, wrong = asked(lambda round_=round_: _commit_all(folder, range(round_ * 60 + 8, round_ * 60 + 68)))
            problems += [wrong] * bool(wrong)
            holder.tell(0)
            if (said := holder.hear()) != [7]:
                problems.append(f"a snapshot of 7 says {said}")
        if chance.random() < 0.5:
            holder.signal(signal.SIGSTOP)
        grown = _size(folder)
        holder.kill()
        holder.wait()
    _, wrong = asked(lambda: _commit_all(folder, range(300, 600)))
    problems += [wrong] * bool(wrong)
    if _size(folder) > 1.5 * grown:
        problems.append(f"the holder is dead, and the file grew from {grown:,} to {_size(folder):,} bytes")
    return problems + check_finds(folder)


def _small_table(folder: Path) -> RegistryWriter:
    layout.MAX_READERS = _SLOTS  # type: ignore[misc]
    folder.mkdir()
    (folder / layout.LOCK_FILE).write_bytes(bytes((_SLOTS + 4) * 64))  # LMDB takes the number of slots from its size
    writer = RegistryWriter(folder)
    _update(writer, 0)
    return writer


def _full(folder: Path, chance: random.Random) -> list[str]:
    """Live readers hold every slot: the next one is told what to do, the writer goes on, and so do look-ups."""
    problems: list[str] = []
    with _small_table(folder) as writer, Registry(folder) as registry:
        held: list[Snapshot] = []
        for _ in range(_SLOTS + 1):
            found = attempt("a snapshot more", registry.snapshot, problems)
            if found is None:
                break
            held.append(found)
        else:
            problems.append("the table never got full")
        for value in range(1, chance.randint(2, 20)):
            attempt("a commit with a full table", lambda value=value: _update(writer, value), problems)
        if any(_values(snapshot) != {0} for snapshot in held):
            problems.append("a snapshot has changed")
        told, wrong = asked(lambda: _told_of(folder))
        problems += [f"another process: {each}" for each in ([wrong] if wrong else told)]
        for snapshot in held:
            snapshot.close()
        if attempt("after the slots were given back", lambda: _values(registry), problems) != {value}:
            problems.append("after the slots were given back it reads something else")
    return problems


def _told_of(folder: Path) -> list[str]:
    """What another process is told where no slot is free."""
    problems: list[str] = []
    attempt("opening", lambda: Registry(folder).get_module(_NAMES[0]), problems)
    return problems


def _dead_table(folder: Path, _: random.Random) -> list[str]:
    """Dead readers hold every slot: nobody is kept out."""
    problems: list[str] = []
    with _small_table(folder):
        pass
    for _ in range(3):
        with ExitStack() as stack:
            readers = [stack.enter_context(Apart(_holds(folder))) for _ in range(2)]
            if [reader.hear() for reader in readers] != ["ready", "ready"]:
                problems.append("a reader was kept out")
            for reader in readers:
                reader.kill()
    found, wrong = asked(lambda: sorted(_values(Registry(folder))))
    if wrong or found != [0]:
        problems.append(f"after that: {wrong or found}")
    return problems


def _stopped_readers(folder: Path, chance: random.Random) -> list[str]:
    """Readers that are stopped anywhere read no older revision, and no half one, when they go on."""
    asked(lambda: _commit_all(folder, [0]))
    problems: list[str] = []
    with ExitStack() as stack:
        readers = [stack.enter_context(Apart(_reads_on(folder))) for _ in range(3)]
        for reader in readers:
            reader.hear()
        with RegistryWriter(folder) as writer:
            for value in range(1, 60):
                reader = chance.choice(readers)
                reader.signal(signal.SIGSTOP)
                _update(writer, value)
                if chance.random() < 0.5:
                    _update(writer, value)
                reader.signal(signal.SIGCONT)
        for reader in readers:
            reader.kill()
            said = reader.heard()
            if reader.wait() != -signal.SIGKILL:
                problems.append(f"a reader ended: {said[-1:]}")
    return problems + check_finds(folder)


def _stopped_daemon(folder: Path, chance: random.Random) -> list[str]:
    """Readers go on without it; a client is told in time; what it asked for takes effect once."""
    problems: list[str] = []
    with Apart(lambda say, _: Daemon(folder).run(lambda _: say("ready"))) as daemon:
        daemon.hear()
        with WriterClient(folder, timeout=60.0) as client, Registry(folder) as registry:
            client.register_module(ModuleInfo("a.B", estimated_duration=1))
            for value in range(2, 2 + chance.randint(1, 4)):
                daemon.signal(signal.SIGSTOP)
                client.timeout = 0.05
                try:
                    client.register_module(ModuleInfo("a.B", estimated_duration=value))
                    problems.append("a stopped daemon has answered")
                except WriterTimeoutError as error:
                    problems += [wrong] if (wrong := complaint(error)) else []
                if registry.get_module("a.B").estimated_duration not in (value - 1, value):
                    problems.append("a reader beside a stopped daemon is wrong")
                daemon.signal(signal.SIGCONT)
                client.timeout = 60.0
                client.register_module(ModuleInfo("a.B", estimated_duration=value))
                stored = registry.describe("a.B")
                if (stored.info.estimated_duration, stored.provenance.version) != (value, value):
                    problems.append(f"{value} was asked for twice: {stored.provenance.version} versions")
        daemon.signal(signal.SIGTERM)
        if status := daemon.wait():
            problems.append(f"the daemon ended with {status}")
    return problems + check_finds(folder)


def _no_descriptors(folder: Path, chance: random.Random) -> list[str]:
    """A process that has no file descriptor left is told so by name, and goes on when it has some."""
    asked(lambda: _commit_all(folder, [3]))
    problems: list[str] = []
    used = len(list(Path("/proc/self/fd").iterdir()))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(6):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used - 1 + spare, before[1]))
        opened = attempt(f"{spare} descriptors left", lambda: Registry(folder), problems)
        if opened is not None:
            attempt(f"{spare} descriptors left, a read", lambda opened=opened: _values(opened), problems)
            opened.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    try:
        with Registry(folder) as registry:
            if _values(registry) != {3}:
                problems.append("afterwards it reads something else")
    except RegistryError as error:
        problems.append(f"afterwards: {error}")
    return problems


FAULT = Fault(
    "readers",
    "killed, stopped, holding snapshots; tables full of the living and the dead; no descriptors left",
    "scenes",
    210,
    7,
    tries_of(
        {
            "readers killed": _killed,
            "snapshots held": _held,
            "table full of live readers": _full,
            "table full of dead readers": _dead_table,
            "readers stopped": _stopped_readers,
            "daemon stopped": _stopped_daemon,
            "no descriptors": _no_descriptors,
        }
    ),
)
