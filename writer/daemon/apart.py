"""Work of the daemon that runs in a process beside it, because it may take long, or die of a damaged file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

_NICE: Final = 10
"""The daemon's commits come first."""


class Ended(NamedTuple):
    """What a process did. `status` below 0: the signal that ended it."""

    status: int
    output: bytes
    errors: bytes


async def run_apart(command: Sequence[str | os.PathLike[str]]) -> Ended:
    """Run a command to its end. It is killed when this is cancelled. Raises OSError when it cannot be started."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return Ended(process.returncode or 0, output, errors)
