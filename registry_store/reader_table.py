"""Who has slots in LMDB's table of readers, and how far behind the newest transaction each of them reads.

While a snapshot is held, no page that was in use since can be used again: the file grows, and nothing fails. So there
must be a way to see who holds it. Where all slots are taken, LMDB does not even open. Then lock.mdb itself is read, by
another process: to close it in a process that has it open drops LMDB's locks on it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from dspy_registry.registry_store.layout import LOCK_FILE

_MAGIC: Final = 0xBEEFC0DE
_NEWEST_AT, _SLOTS_AT, _SLOT_BYTES = 48, 128, 64
_COUNTS: Final = struct.Struct("<QI")
_SLOT: Final = struct.Struct("<QI")
_NO_TRANSACTION: Final = 2**64 - 1
_LONGEST_COMMAND: Final = 120
_SECONDS: Final = 10.0


class Slot(NamedTuple):
    """One slot: a process, and the transaction whose pages it may read. None: it reads nothing now."""

    pid: int
    transaction: int | None


class Holder(msgspec.Struct, frozen=True):
    """A process with slots. `command` None: it cannot be seen. `behind`: transactions committed since the oldest one
    that it may still read, 0: none. `since` is the Unix time at which it was first seen with that one; None: not known.
    """

    pid: int
    command: str | None
    slots: int
    behind: int
    since: float | None = None


def parse_table(text: str) -> list[Slot]:
    """The slots in LMDB's own listing, `lmdb.Environment.readers()`."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[0].isdigit():
            found.append(Slot(int(fields[0]), int(fields[2]) if fields[2].isdigit() else None))
    return found


def parse_lock_file(content: bytes) -> tuple[list[Slot], int]:
    """The slots in the bytes of lock.mdb, and the newest transaction. Nothing where it is another kind of file."""
    if len(content) < _SLOTS_AT or struct.unpack_from("<I", content)[0] != _MAGIC:
        return [], 0
    newest, used = _COUNTS.unpack_from(content, _NEWEST_AT)
    last = min(used, (len(content) - _SLOTS_AT) // _SLOT_BYTES)
    slots = (_SLOT.unpack_from(content, _SLOTS_AT + at * _SLOT_BYTES) for at in range(last))
    return [Slot(pid, None if number == _NO_TRANSACTION else number) for number, pid in slots if pid], newest


def read_without_slot(folder: Path) -> tuple[list[Slot], int]:
    """`parse_lock_file` of a registry. Nothing where this user may not read the file."""
    import subprocess  # here, and not at the import of every reader: few processes come here

    try:
        done = subprocess.run(
            ["cat", "--", folder / LOCK_FILE],
            capture_output=True,
            check=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return [], 0
    return parse_lock_file(done.stdout)


def holders(slots: Iterable[Slot], newest: int) -> list[Holder]:
    """One for each process that is alive, the one furthest behind first."""
    by_process: dict[int, list[int | None]] = {}
    for slot in slots:
        by_process.setdefault(slot.pid, []).append(slot.transaction)
    found = [
        Holder(
            pid, command_of(pid), len(held), max((newest - number for number in held if number is not None), default=0)
        )
        for pid, held in by_process.items()
        if Path(f"/proc/{pid}").exists()
    ]
    return sorted(found, key=lambda holder: (-holder.behind, -holder.slots, holder.pid))


def command_of(pid: int) -> str | None:
    """The command line of a process, cut off where it is long; None when it cannot be seen."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    text = " ".join(line.replace(b"\0", b" ").decode("utf-8", "replace").split())
    return (text if len(text) <= _LONGEST_COMMAND else f"{text[:_LONGEST_COMMAND]}…") or None


def described(found: Iterable[Holder], most: int = 5) -> str:
    """Some of them, in words."""
    listed = list(found)
    words = [f"process {holder.pid} ({holder.command or 'unknown'}): {holder.slots}" for holder in listed[:most]]
    return "; ".join([*words, "…"] if len(listed) > most else words)
