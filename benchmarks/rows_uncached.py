"""Reads that no cache answers, compared with the shortest code by hand on py-lmdb and msgspec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.harness import Arguments, Contender, Contest, Namespace, compare
from benchmarks.rows import Bench, MakeContest, Result, Row
from benchmarks.stores import OURS
from benchmarks.stores.baselines import HandWritten
from benchmarks.workloads import shuffled
from dspy_registry import Registry

SIZE: Final = 1_000
PASS: Final = 1_000
LEAST, CHECKED = "hand-written", "hand-written, with a checksum"


class Fresh:
    """Opens a new registry, with an empty cache, before each pass.

    Another registry stays open, as in a worker, so that the LMDB environment of the process is not opened each time.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        stack.enter_context(Registry(path))
        self._current = Registry(path)
        stack.callback(lambda: self._current.close())

    def __call__(self) -> Namespace:
        self._current.close()
        self._current = Registry(self._path)
        return {"store": self._current}


class FreshSnapshot(Fresh):
    """Takes a snapshot of a new registry before each pass."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        super().__init__(path, stack)
        self._snapshot: Any = None
        stack.callback(self._close)

    def _close(self) -> None:
        if self._snapshot is not None:
            self._snapshot.close()

    def __call__(self) -> Namespace:
        self._close()
        self._snapshot = super().__call__()["store"].snapshot()
        return {"store": self._snapshot}


def distinct(names: list[str], pass_length: int = PASS) -> Arguments:
    """Pass n gets the n-th stretch of the shuffled names. No name comes twice within a pass."""
    order = shuffled(names)
    length = min(pass_length, len(order))

    def arguments(turn: int) -> list[str]:
        start = turn * length % (len(order) - length + 1)
        return order[start : start + length]

    return arguments


def get_contest(bench: Bench, stack: ExitStack) -> Contest:
    """A new registry and the shortest code by hand. Each name is read once in a pass."""
    size = bench.upto(SIZE)
    dataset, plain = bench.dataset(size), bench.plain(size)
    by_hand = stack.enter_context(closing(HandWritten(plain.path)))
    return Contest(
        [
            Contender(OURS, "store.get_module({})", Fresh(dataset.path, stack)),
            Contender(LEAST, "store.get({})", partial(dict, store=by_hand)),
            Contender(CHECKED, "store.get_checked({})", partial(dict, store=by_hand)),
        ],
        distinct(dataset.names),
        repeatable=False,
    )


def snapshot_contest(bench: Bench, stack: ExitStack) -> Contest:
    """A new snapshot and one open transaction. Each name is read once in a pass."""
    size = bench.upto(SIZE)
    dataset, plain = bench.dataset(size), bench.plain(size)
    by_hand = stack.enter_context(closing(HandWritten(plain.path)))
    held = stack.enter_context(closing(by_hand.held()))
    return Contest(
        [
            Contender(OURS, "store.get_module({})", FreshSnapshot(dataset.path, stack)),
            Contender(LEAST, "store.get({})", partial(dict, store=held)),
        ],
        distinct(dataset.names),
        repeatable=False,
    )


def _measure(what: Comparable, bench: Bench) -> Iterator[Result]:
    with ExitStack() as stack:
        plan = bench.long_plan
        found = compare(what.contest(bench, stack), plan, bench.ticker(what.title, plan.rounds))
    facts: dict[str, Any] = dict(found.facts())
    if CHECKED in found.medians:
        facts["times hand-written with a checksum"] = round(found.ratio(OURS, CHECKED), 3)
    yield Result(
        what.name,
        what.title,
        "at most",
        what.limit,
        found.ratio(OURS, LEAST),
        note=f"times {what.compared} without a checksum; {bench.upto(SIZE):,} modules",
        rounds=found.ratios(OURS, LEAST),
        summaries=found.summaries(),
        facts=facts,
    )


class Comparable(NamedTuple):
    """A contest with its limit."""

    name: str
    title: str
    limit: float
    compared: str
    contest: MakeContest


COMPARED: Final = (
    # What makes a first read right and safe takes 0.5 x by itself: `steps_uncached` has each part.
    Comparable("get_uncached", "first get_module of a name", 1.8, "hand-written py-lmdb + msgspec", get_contest),
    Comparable(
        "snapshot_uncached",
        "get_module inside a snapshot",
        1.4,
        "get + decode in an open transaction",
        snapshot_contest,
    ),
)
ROWS: Final = tuple(Row(what.name, (what.name,), 3, partial(_measure, what)) for what in COMPARED)
