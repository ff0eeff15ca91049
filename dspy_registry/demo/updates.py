"""The demo's client: it keeps updating modules through the daemon, and marks what was acknowledged."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from dspy_registry.registry_store.records import ModuleInfo, Requirements

if TYPE_CHECKING:
    from dspy_registry.writer.client.client import WriterClient

ARRIVING: Final = "demo_arrival"
"""The capability of the modules that are added while the readers read."""

LIVE: Final = tuple(
    ModuleInfo(
        name=f"acme.{name}",
        category="prediction",
        capabilities=("summarisation", "reasoning"),
        requirements=Requirements(memory="low", compute="medium"),
        estimated_duration=1,
    )
    for name in ("Summarise", "Classify", "Translate", "Extract")
)
"""Modules whose duration goes up by 1 with each update, so that an old value shows."""

UPDATES_PER_ARRIVAL: Final = 10
SECONDS_TO_FINISH: Final = 10.0
PAUSE: Final = 0.002  # seconds between an acknowledgement and the next update


class Marks:
    """A file of what was acknowledged: a number per live module, then the count of new modules. Readers map it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(8 * (len(LIVE) + 1)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.numbers = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Unmap the file; it stays on disk."""
        self.numbers.release()
        self._map.close()


class Updates:
    """Updates in a background thread until `close`. Each is marked once it is acknowledged.

    `durations` has the nanoseconds from each call to its acknowledgement; `error` is what went wrong, or None.
    """

    def __init__(self, client: WriterClient, marks: Marks) -> None:
        self.durations: list[int] = []
        self.error: str | None = None
        self._client = client
        self._marks = marks
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Register the modules to update, then start the thread."""
        self._client.register_modules(LIVE)
        for place, info in enumerate(LIVE):
            self._marks.numbers[place] = info.estimated_duration
        self._thread.start()

    def close(self) -> None:
        """Stop after the current update."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(SECONDS_TO_FINISH)

    def _run(self) -> None:
        try:
            for place, info in _endless():
                self._update(place, info)
                if self._stopped.wait(PAUSE):
                    return
        except Exception as error:  # any error: the demo has failed and says so
            self.error = f"{type(error).__name__}: {error}"

    def _update(self, place: int, info: ModuleInfo) -> None:
        began = time.perf_counter_ns()
        self._client.register_module(info)
        self.durations.append(time.perf_counter_ns() - began)
        # Marked after the acknowledgement: a read that begins later and does not see the update is stale.
        self._marks.numbers[place] = info.estimated_duration if place < len(LIVE) else self._marks.numbers[place] + 1


def _endless() -> Iterator[tuple[int, ModuleInfo]]:
    """(place in the marks, module to register): the live modules in turn, and a new module after every tenth update."""
    number = 0
    while True:
        number += 1
        turn, place = divmod(number, len(LIVE))
        yield place, msgspec.structs.replace(LIVE[place], estimated_duration=turn + 2)
        if number % UPDATES_PER_ARRIVAL == 0:
            yield (
                len(LIVE),
                ModuleInfo(f"acme.arrivals.Number{number // UPDATES_PER_ARRIVAL}", capabilities=(ARRIVING,)),
            )
