"""A disk that fails or fills up at the k-th call: in an embedded writer, and in the daemon with clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dspy_registry import WriterClient
from dspy_registry.writer.daemon.lifecycle import Daemon
from tests.stress import copies
from tests.stress.apart import Apart, Say
from tests.stress.faults import Case, Fault, Plan
from tests.stress.injection import COMMITS, batch, injected, judged, write_on
from tests.stress.oracle import complaint
from tests.stress.recording import can_record

CALLS = (
    ("pwrite64", ("EIO", "ENOSPC"), 40),
    ("writev", ("EIO", "ENOSPC"), 12),
    ("pwritev", ("EIO", "ENOSPC"), 12),
    ("write", ("EIO", "ENOSPC"), 2),
    ("fdatasync", ("EIO", "ENOSPC"), 24),
    ("fsync", ("EIO", "ENOSPC"), 4),
    ("fallocate", ("ENOSPC", "EIO"), 2),
    ("ftruncate", ("ENOSPC", "EIO"), 3),
    ("rename", ("ENOSPC", "EIO"), 3),
    ("openat", ("EMFILE", "EIO", "ENOSPC"), 16),
    ("mkdir", ("ENOSPC", "EIO"), 1),
    ("mmap", ("ENOMEM",), 6),
    ("flock", ("EIO", "ENOLCK"), 1),
)
_LARGEST = 600_000
"""Bytes that a registry of these tests comes to at the most: beyond it no write is short."""


def _plan(key: str, plan: Plan) -> tuple[str, str]:
    """The call that fails, and how; or ("", bytes) for a file that may not grow beyond."""
    chance = plan.chance(key)
    if int(key) % 10 == 5:
        return "", str(chance.randrange(_LARGEST))
    call, errors, most = chance.choice(CALLS)
    again = chance.choice(("", "", "+"))  # once, or from then on
    return call, f"error={chance.choice(errors)}:when={chance.randint(1, most)}{again}"


def _embedded(folder: Path, call: str, what: str) -> tuple[list[Any], int]:
    if not call:
        with Apart(write_on(folder, int(what))) as child:
            return child.heard(), child.wait()
    with injected(folder, call, what, write_on(folder)) as child:
        return child.heard(), child.wait()


def _serve(folder: Path) -> Callable[[Say, Callable[[], Any]], None]:
    def work(say: Say, _: object) -> None:
        try:
            Daemon(folder).run(lambda _: say("ready"))
        except Exception as error:
            say(["ended", str(error), complaint(error)])

    return work


def _ask(folder: Path) -> Callable[[Say, Callable[[], Any]], None]:
    def work(say: Say, _: object) -> None:
        with WriterClient(folder, timeout=2.0) as client:
            for value in range(1, COMMITS + 1):
                try:
                    client.register_modules(batch(value))
                except Exception as error:
                    say(["refused", value, complaint(error)])
                else:
                    say(["done", value, ""])

    return work


def _daemon(folder: Path, call: str, what: str) -> tuple[list[Any], int]:
    with injected(folder, call, what, _serve(folder)) as daemon:
        first = daemon.hear()
        if first != "ready":
            return ([["not opened", *first[1:]]] if first else []), daemon.wait()
        with Apart(_ask(folder)) as client:
            said = client.heard()
            client.wait()
        daemon.signal(15)
        ended = daemon.heard()
        return said + [["not opened", *end[1:]] for end in ended if end[0] == "ended"], daemon.wait()


def _copying(plan: Plan, key: str) -> Case:
    """A backup or a restore, every other time."""
    chance = plan.chance(key)
    kind = chance.choice(("backup", "restore"))
    call, most = chance.choice(copies.CALLS)
    what = f"error={chance.choice(('EIO', 'ENOSPC'))}:when={chance.randint(1, most)}{chance.choice(('', '+'))}"
    problems, status = copies.copied(plan, kind, call, what)
    if status:
        problems.append(f"it ended with {status}")
    return Case(key, tuple(f"{problem} ({kind}, {call} {what})" for problem in problems), f"{kind}s")


def _case(plan: Plan, key: str) -> Case:
    if int(key) % 5 == 4:
        return _copying(plan, key)
    folder = plan.folder("registry")
    call, what = _plan(key, plan)
    is_daemon = bool(call) and int(key) % 2 == 0
    said, status = (_daemon if is_daemon else _embedded)(folder, call, what)
    problems = judged(folder, said)
    if status < 0:
        problems.append(f"it died of signal {-status}")
    elif status:
        problems.append(f"it ended with {status}: {said[-1:]}")
    where = f"({'daemon' if is_daemon else 'embedded'}, {call or 'short write'} {what})"
    done = [each for each in said if each[0] == "done"]
    note = "not reached" if len(done) == COMMITS else "refused"
    return Case(key, tuple(f"{problem} {where}" for problem in problems), f"{note}, {call or 'short write'}")


def _tries(plan: Plan) -> Iterator[Case]:
    if not can_record():
        yield Case("all", skipped="strace cannot trace here")
        return
    for key in plan.cases():
        yield _case(plan, key)


FAULT = Fault(
    "disk_errors",
    "EIO, ENOSPC, EMFILE, short write, failing sync at call k; embedded, daemon, backup, restore",
    "runs",
    400,
    10,
    _tries,
)
