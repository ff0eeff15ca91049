"""System calls of a running process that fail or kill it at the k-th time: with strace, attached after the imports."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dspy_registry import ModuleInfo, Registry, RegistryError, RegistryWriter
from tests.stress.apart import Apart, Say, asked
from tests.stress.oracle import check_finds, complaint
from tests.stress.recording import attach

MODULES = tuple(f"a.M{number}" for number in range(8))
COMMITS = 8
_PADDING = "x" * 700


Work = Callable[[Say, Callable[[], Any]], object]
_NAMES = ("", "data.mdb", "lock.mdb", "revision", "writer.lock", "writer.sock", ".revision.{pid}", ".lock.mdb.{pid}")


@contextmanager
def injected(folder: Path, call: str, what: str, work: Work, *, further: tuple[str, ...] = ()) -> Iterator[Apart]:
    """`work` in a forked child, under strace from its first instruction on. `what`: `error=EIO:when=3`.

    Only calls on the registry's own files count, and on `further` ones in its folder.
    """

    def gated(say: Say, hear: Callable[[], Any]) -> None:
        hear()
        work(say, hear)

    with Apart(gated) as child:
        names = [name.format(pid=child.pid) for name in (*_NAMES, *further)]
        paths = [option for name in names for option in ("-P", str(folder / name))]
        options = ["-e", f"trace={call}", "-e", f"inject={call}:{what}", *paths, "-o", "/dev/null"]
        with attach(child.pid, options):
            try:
                child.tell()
                yield child
            finally:
                child.end()


def batch(value: int) -> list[ModuleInfo]:
    """The whole registry of these tests at one value: every commit replaces all of it."""
    return [ModuleInfo(name, estimated_duration=value, metadata={"text": _PADDING}) for name in MODULES]


def write_on(folder: Path, limit: int | None = None) -> Callable[[Say, Callable[[], Any]], None]:
    """An embedded writer that makes a registry and some commits, with a reader in the same process.

    `limit` is the largest size of a file in bytes, beyond which a write is short and then fails.
    """

    def work(say: Say, _: object) -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            writer = RegistryWriter(folder)
        except Exception as error:
            say(["not opened", str(error), complaint(error)])
            return
        say(["opened", "", ""])
        with writer:
            for value in range(1, COMMITS + 1):
                say(_committed(lambda value=value: writer.register_modules(batch(value)), value))
                say(_read(folder))

    return work


def _committed(commit: Callable[[], object], value: int) -> list[Any]:
    try:
        commit()
    except Exception as error:
        return ["refused", value, complaint(error)]
    return ["done", value, ""]


def _read(folder: Path) -> list[Any]:
    try:
        with Registry(folder, cache_size=0) as registry:
            return ["read", values(registry), ""]
    except Exception as error:
        return ["read", [], complaint(error)]


def values(registry: Registry) -> list[int]:
    """Of all modules: one number, unless half a batch is there; none where none was registered."""
    with registry.snapshot() as snapshot:
        found = [snapshot.get(name) for name in MODULES]
    present = {info.estimated_duration for info in found if info is not None}
    return sorted(present | ({0} if None in found and present else set()))


def judged(folder: Path, said: list[Any]) -> list[str]:
    """What is wrong with what a writer said and what it left."""
    problems: list[str] = []
    last, tried = 0, 0
    for kind, value, wrong in said:
        if wrong and kind == "not opened":
            problems.append(f"opening: {wrong}")
        elif wrong:
            problems.append(f"{kind} {value}: {wrong}")
        if kind in ("done", "refused"):
            tried = value
            last = value if kind == "done" else last
        elif kind == "read" and value and not (len(value) == 1 and last <= value[0] <= tried):
            problems.append(f"read {value} when {last} was acknowledged and {tried} tried")
    found, wrong = asked(lambda: _left(folder))
    if wrong:
        return [*problems, f"the next writer: {wrong.strip().splitlines()[-1]}"]
    present, finds = found
    # A commit that was under way when the process died was not heard of.
    right = present == ([last] if last else []) or (len(present) == 1 and last < present[0] <= tried + 1)
    if not right:
        problems.append(f"{last} was acknowledged, {tried} was tried last, {present} is there")
    return problems + [f"check: {each}" for each in finds]


def _left(folder: Path) -> tuple[list[int], list[str]]:
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        present = values(registry)
        writer.register_module(ModuleInfo("a.Afterwards"))
    return present, check_finds(folder)


def ours(work: Callable[[], Any]) -> str:
    """The error of ours that `work` raises, as text; "" where it raises none."""
    try:
        work()
    except RegistryError as error:
        return str(error)
    return ""
