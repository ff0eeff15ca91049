"""How much time `record` adds to a request, compared with the least code that counts calls."""

from __future__ import annotations

import resource
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

from benchmarks.harness import UNROLLED, Comparison, Contender, Contest, Namespace, chunked, compare
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
SINGLE: Final = "_single"


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
        made = contest(what, bench, stack)
        first = first_pass(made.contenders[0], [NAME] * what.calls, chunk)
        found = compare(made, plan, bench.ticker(what.title, plan.rounds))
        facts = {**found.facts(), **first}
    yield Result(
        what.name,
        what.title,
        "at most",
        LIMIT,
        found.ratio(OURS, PLAIN),
        note=f"times {PLAIN}",
        rounds=found.ratios(OURS, PLAIN),
        summaries=found.summaries(),
        facts=facts,
    )
    yield _single(what, found)


def _single(what: Recording, found: Comparison) -> Result:
    """The same of calls timed one by one: their median leaves out what only some calls of a batch meet."""
    ours, plain = (statistics.median(found.singles[label]) for label in (OURS, PLAIN))
    return Result(
        f"{what.name}{SINGLE}",
        f"{what.title}, single calls",
        "at most",
        LIMIT,
        ours / max(1.0, plain),
        "x",
        f"times {PLAIN}",
    )


def first_pass(contender: Contender, asked: list[str], chunk: int) -> dict[str, float]:
    """What the process's first batches meet and later calls do not: memory that it has not touched before.

    Rounds are timed behind it, as a pass goes untimed before the rounds of what is repeated. Where a hypervisor serves
    the first touch of a page, this pass may take ten times as long as they do.
    """
    chunks = chunked(asked, chunk)
    names = contender.namespace()
    before, whole, own = resource.getrusage(resource.RUSAGE_SELF), time.process_time(), time.thread_time()
    times = contender.batches(chunks, 1, names)
    after = resource.getrusage(resource.RUSAGE_SELF)
    own = time.thread_time() - own
    others = time.process_time() - whole - own
    calls = len(asked) // UNROLLED * UNROLLED
    return {
        "first pass, ns": round(statistics.median(times), 1),
        "page faults in 1,000 calls of it": round((after.ru_minflt - before.ru_minflt) / calls * 1000, 2),
        "reporter's threads in it, of the calls' processor time": round(max(0.0, others) / own, 3),
    }


ROWS: Final = tuple(
    Row(what.name, (what.name, f"{what.name}{SINGLE}"), 16, partial(_record, what)) for what in RECORDINGS
)
