"""Backups and restores whose calls fail, or that are killed at a call."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dspy_registry import RegistryWriter
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.check.checker import check
from dspy_registry.writer.restore import restore
from tests.stress.apart import Say, asked
from tests.stress.faults import Plan
from tests.stress.injection import injected
from tests.stress.oracle import Contents, complaint, contents, differs, is_absent, recovers
from tests.stress.power_loss import ALIASES, SCENARIOS

CALLS = (
    ("write", 12),
    ("pwrite64", 4),
    ("writev", 3),
    ("fdatasync", 3),
    ("fsync", 6),
    ("fallocate", 2),
    ("ftruncate", 2),
    ("rename", 4),
    ("openat", 30),
    ("mkdir", 2),
    ("mmap", 6),
)
_NAMES = ("data.mdb", "lock.mdb", "revision", ".lock.mdb.{pid}", ".revision.{pid}")
_OF_A_BACKUP = (".partial", *(f".partial/{name}" for name in _NAMES))
_OF_A_RESTORE = (".restoring",)


def copied(plan: Plan, kind: str, call: str, what: str) -> tuple[list[str], int]:
    """What is wrong after a `backup` or a `restore` with a fault in it, and how its process ended."""
    base = plan.room / "copies"
    if not base.exists():
        asked(lambda: SCENARIOS["restore"].prepare(base / "room"))
    former, _ = asked(lambda: contents(base / "room" / "registry", ALIASES))
    restored, _ = asked(lambda: contents(base / "room" / "monday", ALIASES))
    room = plan.folder("copying")
    shutil.copytree(base / "room", room)
    registry, target = room / "registry", room / "target"
    asked(lambda: RegistryWriter(registry).close())  # a copy is another registry from its first writer on
    if kind == "backup":
        work, folder, further = _does(lambda: backup(target, registry)), target, _OF_A_BACKUP
    else:
        work, folder, further = _does(lambda: restore(room / "monday", registry)), registry, _OF_A_RESTORE
    with injected(folder, call, what, work, further=further) as child:
        said = child.heard()
        status = child.wait()
    is_done = ["done", ""] in said
    problems = [f"it was refused: {wrong}" for kind, wrong in said if kind == "refused" and wrong]
    allowed = [restored] if is_done else [former, restored]
    if kind == "backup":
        allowed = [former]
        problems += _told(lambda: _whole_or_absent(target, former, is_done))
    return problems + _told(lambda: recovers(registry, allowed, 0, ALIASES)), status


def _does(work: Callable[[], object]) -> Callable[[Say, Callable[[], Any]], None]:
    def does(say: Say, _: object) -> None:
        try:
            work()
        except Exception as error:
            say(["refused", complaint(error)])
        else:
            say(["done", ""])

    return does


def _told(look: Callable[[], list[str]]) -> list[str]:
    problems, wrong = asked(look)
    return [wrong] if wrong else problems


def _whole_or_absent(target: Path, former: Contents, is_done: bool) -> list[str]:
    if is_absent(target):
        return ["the backup is gone, though it was reported"] if is_done else []
    found = contents(target, ALIASES)
    problems = [] if found == former else [f"half a backup: {differs(found, [former])}"]
    return problems + [f"check: {violation}" for violation in check(target)]
