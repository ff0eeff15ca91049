"""Work in a forked child: a fault may kill it or hang it, and it starts in a few milliseconds.

The parent must be a process that holds no registry open and has no threads.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

PATIENCE = 120.0
"""Seconds after which a child counts as stuck: a limit for what hangs, not a measure."""

Say = Callable[[Any], None]


class Apart:
    """A forked child that runs `work(say, hear)`. Its status is 0 unless `work` raises, which it then says."""

    def __init__(self, work: Callable[[Say, Callable[[], Any]], object]) -> None:
        answers, telling = os.pipe()
        orders, ordering = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(answers)
            os.close(ordering)
            _run(work, telling, orders)
        os.close(telling)
        os.close(orders)
        self._answers = answers
        self._ordering = ordering
        self._held = b""
        self.status: int | None = None
        self.is_stuck = False

    def tell(self, message: Any = None) -> None:
        with suppress(BrokenPipeError):
            os.write(self._ordering, json.dumps(message).encode() + b"\n")

    def hear(self, patience: float = PATIENCE) -> Any:
        """The next thing it says; None when it is dead, done or stuck (then it is killed)."""
        deadline = time.monotonic() + patience
        while b"\n" not in self._held:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.is_stuck = True
                self.kill()
                return None
            data = os.read(self._answers, 1 << 16)
            if not data:
                return None
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return json.loads(line)

    def heard(self, patience: float = PATIENCE) -> list[Any]:
        """All that it still says."""
        found = []
        while (said := self.hear(patience)) is not None:
            found.append(said)
        return found

    def signal(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status; negative: the signal it died of."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._answers)
            os.close(self._ordering)
        return self.status

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill it, unless it has ended and that is known."""
        if self.status is None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
                self.kill()
            self.wait()


def _run(work: Callable[[Say, Callable[[], Any]], object], telling: int, orders: int) -> None:
    """The child's side. It never returns."""
    status = 1
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(silence, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines = os.fdopen(orders, "rb")

    def say(message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(telling, data) :]

    def hear() -> Any:
        line = lines.readline()
        return json.loads(line) if line else None

    try:
        work(say, hear)
        status = 0
    except BaseException:
        with suppress(OSError):
            say({"error": traceback.format_exc()})
    finally:
        os._exit(status)


def asked(work: Callable[[], Any], patience: float = PATIENCE) -> tuple[Any, str]:
    """What `work` returns in a child of its own, and what went wrong with the child ("": nothing)."""
    with Apart(lambda say, _: say({"answer": work()})) as child:
        said = child.heard(patience)
        status = child.wait()
    last = said[-1] if said else {}
    if child.is_stuck:
        return None, f"it was stuck for {patience:.0f} s"
    if status < 0:
        return None, f"it died of {signal.Signals(-status).name}"
    return last.get("answer"), last.get("error", "")
