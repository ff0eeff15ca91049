"""The state of the registry and its daemon, looked at once a second by one thread, for all pages; and the file's size.

A daemon that is stopped answers nobody, and each page would wait for it. So pages show what was seen last, and when.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, NamedTuple

from dspy_registry.cli.status import current_facts
from dspy_registry.registry_store.errors import RegistryError

_PAUSE: Final = 1.0
_PATIENCE: Final = 2.0
_SAMPLE_SECONDS: Final = 10.0
SAMPLES: Final = 720
"""Two hours of file sizes, one each ten seconds."""


class Sample(NamedTuple):
    """The data file at one moment (Unix time). Pages are None where the file cannot be read."""

    at: float
    data_bytes: int
    pages: int | None
    unused_pages: int | None


class Watched:
    """What `dspy-registry status` says, kept up to date from `start` to `stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._facts: dict[str, Any] = {"registry": None, "daemon": None, "unreachable": None, "problems": []}
        self._at = 0.0
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="explorer watch", daemon=True)

    def start(self) -> None:
        """Look once, then go on in a thread."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def facts(self) -> dict[str, Any]:
        """As `dspy-registry status --json`, with `seen_at` (Unix time). Do not change it."""
        return {**self._facts, "seen_at": self._at}

    @property
    def growth(self) -> list[Sample]:
        """Sizes of the data file since the explorer began, oldest first."""
        return list(self._samples)

    def _run(self) -> None:
        while not self._stopping.wait(_PAUSE):
            self._look()

    def _look(self) -> None:
        try:
            facts = current_facts(self._folder, _PATIENCE)
        except RegistryError as error:
            told = {"type": type(error).__name__, "message": error.message, "remedy": error.remedy}
            facts = {"registry": None, "daemon": None, "unreachable": told, "problems": [f"registry: {error.message}"]}
        self._facts, self._at = facts, time.time()
        registry = facts["registry"]
        if registry and (not self._samples or self._at - self._samples[-1].at >= _SAMPLE_SECONDS):
            self._samples.append(Sample(self._at, registry["data_bytes"], registry["pages"], registry["unused_pages"]))
