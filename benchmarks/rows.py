"""The rows of the report, and what they work with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from benchmarks.datasets import Dataset, build, build_plain
from benchmarks.harness import QUICK, Contest, Plan, Summary

Bound = Literal["at most", "at least"]


class Result(msgspec.Struct, frozen=True):
    """One line of the report.

    `figure` is in `unit` ("x": a ratio). None means that it could not be measured; then `note` says why. Otherwise the
    note begins with the comparison, if there is one ("times a dict", "more than a dict"). Circumstances follow after a
    semicolon. `limit` None means that there is no target. `rounds` has the figure of each round.
    """

    name: str
    title: str
    bound: Bound
    limit: float | None
    figure: float | None
    unit: str = "x"
    note: str = ""
    rounds: list[float] = []
    summaries: list[Summary] = []
    facts: dict[str, Any] = {}

    @property
    def reached(self) -> bool | None:
        """Whether the figure is within the limit. None: there is no figure or no limit."""
        if self.figure is None or self.limit is None:
            return None
        return self.figure <= self.limit if self.bound == "at most" else self.figure >= self.limit

    @property
    def target(self) -> str:
        """The limit in words; "" if there is none."""
        return "" if self.limit is None else f"{self.bound} {self.limit:g} {self.unit}"


@dataclass
class Bench:
    """What all rows of a run share: sizes, folders, progress, and data sets, each built once."""

    folder: Path
    sizes: tuple[int, ...]
    quick: bool = False
    say: Callable[[str, float], None] = lambda _what, _share: None
    failed: list[str] = field(default_factory=list)
    _datasets: dict[tuple[str, int], Dataset] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """How many rounds to compare, and how long each is."""
        return QUICK if self.quick else Plan()

    @property
    def long_plan(self) -> Plan:
        """For passes that cannot be repeated. It has more rounds, because each is short."""
        return QUICK if self.quick else Plan(rounds=31)

    @property
    def largest(self) -> int:
        """The size of the largest registry of this run."""
        return max(self.sizes)

    def upto(self, size: int) -> int:
        """This size, or the largest size of this run if that is smaller."""
        return min(size, self.largest)

    def dataset(self, size: int) -> Dataset:
        """A registry of `size` modules. All rows share it; a row that changes modules must work on a copy."""
        key = ("registry", size)
        if key not in self._datasets:
            target = self.folder / f"registry-{size}"
            self._datasets[key] = build(target, size, lambda share: self.say(f"building {size:,} modules", share))
        return self._datasets[key]

    def adopt(self, size: int, dataset: Dataset) -> None:
        """Use this registry, which a row has built, as the data set of its size."""
        self._datasets["registry", size] = dataset

    def plain(self, size: int) -> Dataset:
        """The same modules in a plain LMDB environment, name to encoded record."""
        key = ("plain", size)
        if key not in self._datasets:
            self._datasets[key] = build_plain(self.folder / f"plain-{size}", self.dataset(size).path, size)
        return self._datasets[key]

    def scratch(self, name: str) -> Path:
        """A new empty folder."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        return target

    def ticker(self, what: str, steps: int) -> Callable[[], None]:
        """A function that moves the progress bar by one of `steps`."""
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            self.say(what, done / steps)

        return tick


Measure = Callable[[Bench], Iterator[Result]]
MakeContest = Callable[[Bench, ExitStack], Contest]
"""Opens the stores of a contest. The stack closes them."""


@dataclass(frozen=True)
class Row:
    """Results that are measured together. `results` has their names. `seconds` is about how long it takes."""

    name: str
    results: tuple[str, ...]
    seconds: float
    measure: Measure
