"""What a fault is, what is tried of it, and how one case is repeated."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Case(NamedTuple):
    """One state or run that was tried. `problems` is empty where all was right.

    `key` repeats the case together with the seed. `note` is what is counted beside violations. `tries` is how many
    inputs one case stands for. A case that the machine does not allow has `skipped` with the reason, and counts as 0.
    """

    key: str
    problems: tuple[str, ...] = ()
    note: str = ""
    tries: int = 1
    skipped: str = ""


@dataclass
class Plan:
    """How much is to be tried. `seconds` None: until `count` is reached. `only` names the one case to repeat."""

    room: Path
    seed: int
    count: int
    seconds: float | None = None
    only: str | None = None
    began: float = field(default_factory=time.monotonic)

    def chance(self, key: str) -> random.Random:
        """A generator that depends on the seed and on this case alone."""
        return random.Random(f"{self.seed}/{key}")

    def wants(self, key: str) -> bool:
        return self.only is None or self.only == key

    def cases(self, prefix: str = "") -> Iterator[str]:
        """Endless numbered cases, or the one that is to be repeated; the runner stops when there are enough."""
        if self.only is not None:
            if self.only.startswith(prefix):
                yield self.only
            return
        number = 0
        while True:
            yield f"{prefix}{number}"
            number += 1

    def folder(self, name: str) -> Path:
        """An empty place for one case, where nothing is yet."""
        path = self.room / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def is_over(self) -> bool:
        return self.seconds is not None and time.monotonic() - self.began >= self.seconds


@dataclass(frozen=True)
class Fault:
    """One line of the table. `unit` is what `count` counts: of `make stress`, and `small` of `make test-full`.

    `seconds` is set for what is measured by time: so long it runs, unless `--minutes` says otherwise.
    """

    name: str
    how: str
    unit: str
    count: int
    small: int
    tries: Callable[[Plan], Iterator[Case]]
    seconds: float | None = None
