"""The demo's client: it keeps updating modules through the daemon, and tells the readers what was acknowledged."""

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
"""A capability that more and more modules have."""

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
    """What has been acknowledged: one number per live module, then the number of arrivals. Readers map the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(8 * (len(LIVE) + 1)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.numbers = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Unmap; the file stays."""
        self.numbers.release()
        self._map.close()


class Updates:
    """Updates in a thread of their own, each marked as acknowledged once it is, until `close`.

    `durations` has the nanoseconds from each call until its acknowledgement, `error` what went wrong.
    """

    def __init__(self, client: WriterClient, marks: Marks) -> None:
        self.durations: list[int] = []
        self.error: str | None = None
        self._client = client
        self._marks = marks
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Register what will be updated, then begin."""
        self._client.register_modules(LIVE)
        for place, info in enumerate(LIVE):
            self._marks.numbers[place] = info.estimated_duration
        self._thread.start()

    def close(self) -> None:
        """Finish the update under way."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(SECONDS_TO_FINISH)

    def _run(self) -> None:
        try:
            for place, info in _endless():
                self._update(place, info)
                if self._stopped.wait(PAUSE):
                    return
        except Exception as error:  # whatever it is, the demo has failed and says so
            self.error = f"{type(error).__name__}: {error}"

    def _update(self, place: int, info: ModuleInfo) -> None:
        began = time.perf_counter_ns()
        self._client.register_module(info)
        self.durations.append(time.perf_counter_ns() - began)
        # Only now: from here on a read that does not see it is stale.
        self._marks.numbers[place] = info.estimated_duration if place < len(LIVE) else self._marks.numbers[place] + 1


def _endless() -> Iterator[tuple[int, ModuleInfo]]:
    """(place among the marks, what to register): the live modules in turn, and an arrival now and then."""
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
