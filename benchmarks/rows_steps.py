"""Which steps take the time of a read. Both paths are rebuilt step by step and compared with the registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Final

from benchmarks.harness import Contender, Contest, compare
from benchmarks.rows import Bench, MakeContest, Result, Row
from benchmarks.rows_uncached import SIZE, Fresh, distinct
from benchmarks.stores import OURS
from benchmarks.stores.steps import CACHED_STEPS, UNCACHED_STEPS, Call, Encoded, Guarded, Lookup, Verified
from benchmarks.workloads import shuffled
from dspy_registry import Registry

WORKING_SET: Final = 64
PASS: Final = 1_024


def cached(bench: Bench, stack: ExitStack) -> Contest:
    """The path of a repeated read."""
    dataset = bench.dataset(bench.upto(SIZE))
    asked = shuffled(dataset.names)[:WORKING_SET]
    registry = stack.enter_context(Registry(dataset.path))
    records = {name: registry[name] for name in asked}
    stores = (Call(), Lookup(records), Verified(records, dataset.path))
    steps = [_step(label, store) for label, store in zip(CACHED_STEPS, stores, strict=True)]
    ours = Contender(OURS, "store.get_module({})", partial(dict, store=registry))
    return Contest([ours, *steps], lambda _turn: (asked * PASS)[:PASS])


def uncached(bench: Bench, stack: ExitStack) -> Contest:
    """The path of a first read."""
    size = bench.upto(SIZE)
    dataset = bench.dataset(size)
    begun = stack.enter_context(closing(Guarded(bench.plain(size).path, dataset.path)))
    calls = ("get", "got", "checked", "decoded", "compared", "in_flight", "missed")
    steps = [
        _step(UNCACHED_STEPS[0], Encoded()),
        *[_step(label, begun, call) for label, call in zip(UNCACHED_STEPS[1:], calls, strict=True)],
    ]
    ours = Contender(OURS, "store.get_module({})", Fresh(dataset.path, stack))
    return Contest([ours, *steps], distinct(dataset.names), repeatable=False)


def _step(label: str, store: object, call: str = "get") -> Contender:
    return Contender(label, f"store.{call}({{}})", partial(dict, store=store))


def _measure(name: str, title: str, contest: MakeContest, bench: Bench) -> Iterator[Result]:
    plan = bench.long_plan
    with ExitStack() as stack:
        found = compare(contest(bench, stack), plan, bench.ticker(title, plan.rounds))
    facts = found.facts()
    yield Result(
        name,
        title,
        "at most",
        None,
        facts[f"{OURS}, ns"],
        unit="ns",
        note="docs/performance.md has the steps, rebuilt one by one",
        facts=facts,
    )


def _row(name: str, title: str, contest: MakeContest) -> Row:
    return Row(name, (name,), 4, partial(_measure, name, title, contest))


ROWS: Final = (
    _row("steps_cached", "a repeated read, step by step", cached),
    _row("steps_uncached", "a first read, step by step", uncached),
)
