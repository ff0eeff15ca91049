"""How much time `record` adds to a request, compared with the least code that counts calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

from benchmarks.harness import Contender, Contest, Namespace, compare
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_concurrent import copied
from benchmarks.serving import serving
from benchmarks.stores import OURS
from benchmarks.workers import PATIENCE
from dspy_registry import UsageReporter
from dspy_registry.writer.client.reporter import QUEUE_LENGTH

SIZE: Final = 1_000
NAME: Final = "dspy.Predict"
LIMIT: Final = 3
PLAIN: Final = "a dict update under a lock"
UPDATE: Final = "with lock: counts[{}] = counts.get({}, 0) + 1"
SHORT: Final = "store.record({}, 12.5)"
FULL: Final = "store.record({}, 12.5, True, input_chars=300, tokens_in=5, tokens_out=7, cost_usd=0.01)"
PASS: Final = 4_096  # fewer than the reporter's queue holds
FLOOD: Final = 4 * QUEUE_LENGTH


class Recording(NamedTuple):
    """A way of calling `record`. `calls` is how many calls follow one another without a pause."""

    name: str
    title: str
    statement: str
    calls: int


RECORDINGS: Final = (
    Recording("usage_record", "UsageReporter.record(name, duration)", SHORT, PASS),
    Recording("usage_record_all", "UsageReporter.record with every argument", FULL, PASS),
    Recording("usage_record_flood", f"UsageReporter.record in a flood of {FLOOD:,} calls", FULL, FLOOD),
)


def contest(what: Recording, bench: Bench, stack: ExitStack) -> Contest:
    """`record` with a daemon that takes the reports, and the least code that counts calls."""
    path = copied(bench, bench.upto(SIZE), what.name)
    stack.enter_context(serving(path))
    reporter = stack.enter_context(UsageReporter(path))
    reporter.record(NAME, 1.0)
    names: Namespace = {"store": reporter, "lock": threading.Lock(), "counts": {}}

    def emptied() -> Namespace:
        """Send the pending calls before the clock starts."""
        reporter.flush(PATIENCE)
        return names

    asked = [NAME] * what.calls
    contenders = [Contender(OURS, what.statement, emptied), Contender(PLAIN, UPDATE, emptied)]
    return Contest(contenders, lambda _turn: asked, repeatable=False)


def _record(what: Recording, bench: Bench) -> Iterator[Result]:
    # A flood is timed as one batch, so that the work of the reporter's thread counts too.
    chunk = FLOOD if what.calls == FLOOD else bench.plan.chunk
    plan = replace(bench.plan, chunk=chunk, rounds=1 if bench.quick else 15)
    with ExitStack() as stack:
        found = compare(contest(what, bench, stack), plan, bench.ticker(what.title, plan.rounds))
    yield Result(
        what.name,
        what.title,
        "at most",
        LIMIT,
        found.ratio(OURS, PLAIN),
        note=f"times {PLAIN}",
        rounds=found.ratios(OURS, PLAIN),
        summaries=found.summaries(),
        facts=found.facts(),
    )


ROWS: Final = tuple(Row(what.name, (what.name,), 16, partial(_record, what)) for what in RECORDINGS)
