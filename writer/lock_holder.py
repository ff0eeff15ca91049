"""Who holds the writer lock, by the kernel's table of locks. The pid in the file may be that of a dead process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_LOCKS: Final = Path("/proc/locks")


def holder_of(file: int) -> int | None:
    """The pid of the process that has an exclusive flock on an open writer.lock; None when it cannot be known.

    It is not known where the process is of another PID namespace, or where the kernel shows no locks.
    """
    try:
        table = _LOCKS.read_text(encoding="ascii")
    except OSError:
        return None
    status = os.fstat(file)
    holders = holders_in(table, status.st_dev, status.st_ino)
    written = os.pread(file, 32, 0)
    if written.isdigit() and int(written) in holders:
        return int(written)
    return holders.pop() if len(holders) == 1 else None


def holders_in(table: str, device: int, inode: int) -> set[int]:
    """The pids with an exclusive flock on a file, in the text of /proc/locks.

    Some file systems show another device there than `stat` does. So where no line has this device, those with the
    inode count.
    """
    named = f"{os.major(device):02x}:{os.minor(device):02x}"
    found: dict[bool, set[int]] = {True: set(), False: set()}
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or fields[3] != "WRITE":  # a process that waits has "->" there
            continue
        where, _, number = fields[5].rpartition(":")
        if number == str(inode) and fields[4].isdigit() and int(fields[4]) > 0:
            found[where == named].add(int(fields[4]))
    return found[True] or found[False]
