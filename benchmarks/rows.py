"""What a row of the report is, and what every row gets to work with."""

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

    `figure` is in `unit` ("x": a ratio). It is None when it could not be measured; then `note` says why. Otherwise the
    note begins with what the figure is compared with ("times a dict", "more than a dict"), if anything; circumstances
    follow a semicolon. `limit` is None where there is no target. `rounds` are the figures of the single rounds.
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
        """Whether the figure is within the limit; None when there is no figure or no limit."""
        if self.figure is None or self.limit is None:
            return None
        return self.figure <= self.limit if self.bound == "at most" else self.figure >= self.limit

    @property
    def target(self) -> str:
        """The limit in words."""
        return "" if self.limit is None else f"{self.bound} {self.limit:g} {self.unit}"


@dataclass
class Bench:
    """What rows share in one run: sizes, folders, data sets built once, progress."""

    folder: Path
    sizes: tuple[int, ...]
    quick: bool = False
    say: Callable[[str, float], None] = lambda _what, _share: None
    failed: list[str] = field(default_factory=list)
    _datasets: dict[tuple[str, int], Dataset] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """How long to compare."""
        return QUICK if self.quick else Plan()

    @property
    def long_plan(self) -> Plan:
        """For passes that cannot be repeated: more rounds, since each is short."""
        return QUICK if self.quick else Plan(rounds=31)

    @property
    def largest(self) -> int:
        """The size of the largest registry of this run."""
        return max(self.sizes)

    def upto(self, size: int) -> int:
        """This size, or the largest of this run when that is smaller."""
        return min(size, self.largest)

    def dataset(self, size: int) -> Dataset:
        """A registry of `size` modules. Built once; a row that changes it works on a copy."""
        key = ("registry", size)
        if key not in self._datasets:
            target = self.folder / f"registry-{size}"
            self._datasets[key] = build(target, size, lambda share: self.say(f"building {size:,} modules", share))
        return self._datasets[key]

    def adopt(self, size: int, dataset: Dataset) -> None:
        """Use a registry that a row has built as the data set of its size."""
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
"""Opens what a contest needs on the stack."""


@dataclass(frozen=True)
class Row:
    """A group of results measured together. `results` names all it yields, `seconds` is about what it takes."""

    name: str
    results: tuple[str, ...]
    seconds: float
    measure: Measure
