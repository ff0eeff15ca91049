"""How soon the processes of a host know that a module is not healthy, and what health costs those who read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import Contender, Contest, chunked, compare, summarise
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_concurrent import copied, names_read_and_written
from benchmarks.serving import serving
from benchmarks.stores import OURS, cooldowns
from benchmarks.workers import Workers, requests
from dspy_registry import Policy, Registry, UsageReporter, WriterClient
from dspy_registry.registry_store.host_health import HostHealth, Known
from dspy_registry.registry_store.revision import RevisionFile, private_words

SIZE: Final = 1_000
NAME: Final = "dspy.Predict"
PROCESSES: Final = 8
FAILURES: Final = 5
FAILURES_PER_SECOND: Final = 1_000
LITELLM: Final = "LiteLLM's router, cooldowns shared over Redis"


class Watchers(Workers):
    """Processes that tell when they know. `knowing` is called in each with its arguments, and returns then."""

    def __init__(self, watch: Callable[..., None], *arguments: Any, count: int = PROCESSES) -> None:
        super().__init__(watch, [arguments] * count)

    def begin(self) -> None:
        """Let all of them watch from now on."""
        self.ask("begin")

    def knew(self) -> list[int]:
        """When each of them knew, in nanoseconds of the monotonic clock, which all processes share."""
        return [int(moment) for moment in self.ask("tell")]

    def __enter__(self) -> Watchers:
        return self


def watch_health(path: Path, pipe: Connection) -> None:
    """A worker with a registry, which waits on the futex word of the health file."""
    with Registry(path) as registry:
        health = registry.host_health
        watched(pipe, lambda: _until_open(health))


def watched(pipe: Connection, knows: Callable[[], None]) -> None:
    """A worker's part: it begins to watch when it is told, and tells when it knew."""
    pipe.send("ready")
    for _ in requests(pipe):
        pipe.send("begun")
        knows()
        moment = time.monotonic_ns()
        pipe.recv()
        pipe.send(moment)


def _until_open(health: HostHealth) -> None:
    file = health.file()
    assert file is not None, "the daemon has made it"
    while True:
        seen = file.futex.value
        if health.current().state(NAME, 1) == "open":
            return
        file.futex.wait(seen, 1.0)


def _spread(bench: Bench) -> Iterator[Result]:
    title = f"from the deciding failure to all {PROCESSES} processes knowing"
    rounds = 5 if bench.quick else 200
    tick = bench.ticker(title, rounds)
    path = copied(bench, bench.upto(SIZE), "health-spread")
    last: list[float] = []
    with (
        serving(path),
        WriterClient(path) as client,
        UsageReporter(path) as reporter,
        Watchers(watch_health, path) as watchers,
    ):
        for _ in range(rounds):
            watchers.begin()
            time.sleep(0.2)  # so that what a process may send at once is full again, and all wait
            began = _fail(reporter)
            last.append(float(max(watchers.knew()) - began))
            client.reset_circuit(NAME)
            tick()
    found = summarise(OURS, last)
    yield _spread_result("health_spread", title, 5.0, found.median / 1e6, "the median", found)
    yield _spread_result("health_spread_p99", f"{title}, p99", 25.0, found.p99 / 1e6, "the 99th percentile", found)
    yield from _beside_litellm(bench, found.median)


def _fail(reporter: UsageReporter) -> int:
    """Failures that open a circuit. When the deciding one was recorded, in nanoseconds of the monotonic clock."""
    for _ in range(FAILURES - 1):
        reporter.record(NAME, 1.0, ok=False, error="unavailable")
    began = time.monotonic_ns()
    reporter.record(NAME, 1.0, ok=False, error="unavailable")
    return began


def _spread_result(name: str, title: str, limit: float, figure: float, note: str, found: Any) -> Result:
    return Result(name, title, "at most", limit, figure, unit="ms", note=note, summaries=[found])


def _beside_litellm(bench: Bench, ours: float) -> Iterator[Result]:
    name, title = "health_litellm", f"how much sooner than {LITELLM}"
    try:
        theirs = cooldowns.spread(bench, 1 if bench.quick else 5, Watchers, watched)
    except cooldowns.MissingError as error:
        yield Result(name, title, "at least", 50, None, note=str(error))
        return
    found = summarise(LITELLM, theirs)
    yield Result(
        name,
        title,
        "at least",
        50,
        found.median / ours,
        note=f"times sooner; the medians of both, each until the last knew, of {PROCESSES} processes and of "
        f"{cooldowns.PROCESSES} of LiteLLM",
        summaries=[found],
    )


class _Compared:
    """What kept answers compare, in slots as theirs are."""

    __slots__ = ("every", "health", "kept_every", "kept_health", "kept_two", "two")

    def __init__(self, file: RevisionFile, health: Known) -> None:
        self.every, self.kept_every = file.every_word, private_words(*file.every_word)
        self.two, self.kept_two = file.words, private_words(*file.words)
        self.health = self.kept_health = health


def _compare(bench: Bench) -> Iterator[Result]:
    """On a healthy host: what a kept route compares, less what kept advice does, which does not rest on health."""
    title = "comparing the health count"
    path = copied(bench, bench.upto(SIZE), "health-compare")
    with serving(path), Registry(path) as registry:
        assert registry.health() == []
        names = {"store": _Compared(RevisionFile(path), registry.host_health.known)}
        contest = Contest(
            [
                Contender(OURS, "store.every == store.kept_every and store.health is store.kept_health", lambda: names),
                Contender("nothing", "store.two == store.kept_two", lambda: names),
            ],
            lambda _turn: [NAME] * 4096,
        )
        found = compare(contest, bench.plan, bench.ticker(title, bench.plan.rounds))
    beyond = [one - other for one, other in zip(found.medians[OURS], found.medians["nothing"], strict=True)]
    yield Result(
        "health_compare",
        title,
        "at most",
        40,
        statistics.median(beyond),
        unit="ns",
        note="more than without; a kept route compares it with the words of the revision file, at once",
        rounds=beyond,
        facts=found.facts(),
    )


class Failing(Workers):
    """A worker that reports failures at an even rate until it is told to stop."""

    def __init__(self, path: Path) -> None:
        super().__init__(_report_failures, [(path,)])

    def switch(self, *, on: bool) -> None:
        """Start or stop reporting."""
        self.ask(on)

    def __enter__(self) -> Failing:
        return self


def _report_failures(path: Path, pipe: Connection) -> None:
    is_on, at_once = False, 10
    with UsageReporter(path) as reporter:
        pipe.send("ready")
        try:
            while True:
                if pipe.poll(at_once / FAILURES_PER_SECOND):
                    is_on = pipe.recv()
                    pipe.send("done")
                for _ in range(at_once if is_on else 0):
                    reporter.record(NAME, 5.0, ok=False, error="unavailable")
        except EOFError:
            return


def _readers(bench: Bench) -> Iterator[Result]:
    title = f"cached reads of modules while {FAILURES_PER_SECOND:,} failures a second are reported"
    rounds, seconds = (2, 0.2) if bench.quick else (11, 1.0)
    tick = bench.ticker(title, rounds)
    names = list(dict.fromkeys(names_read_and_written(bench)[0]))
    path = copied(bench, bench.upto(SIZE), "health-readers")
    rates: dict[bool, list[float]] = {False: [], True: []}
    with serving(path), Registry(path) as registry, Failing(path) as failing:
        with WriterClient(path) as client:  # it opens and closes all the time, so that lists are published
            client.set_policy(NAME, Policy(open_seconds=0.001, longest_open_seconds=0.001))
        contender = Contender(OURS, "store.get_module({})", lambda: {"store": registry})
        chunks = chunked((names * 4096)[:4096], 4096)
        contender.batches(chunks, 4)
        for turn in range(rounds):
            for on in (True, False) if turn % 2 else (False, True):
                failing.switch(on=on)
                rates[on].append(_rate(contender, chunks, seconds))
            tick()
    ratios = [beside / alone for beside, alone in zip(rates[True], rates[False], strict=True)]
    yield Result(
        "health_readers",
        title,
        "at least",
        0.95,
        statistics.median(ratios),
        note="times the reads a second of processor time without them",
        rounds=ratios,
        facts={
            "alone, reads/s": round(statistics.median(rates[False])),
            "beside failures, reads/s": round(statistics.median(rates[True])),
        },
    )


def _rate(contender: Contender, chunks: Any, seconds: float) -> float:
    """Reads a second of processor time, for `seconds` of it."""
    start = time.process_time()
    end, done = start + seconds, 0
    while (now := time.process_time()) < end:
        contender.batches(chunks, 1)
        done += 4096
    return done / (now - start)


ROWS: Final = (
    Row("health_spread", ("health_spread", "health_spread_p99", "health_litellm"), 120, _spread),
    Row("health_compare", ("health_compare",), 4, _compare),
    Row("health_readers", ("health_readers",), 25, _readers),
)
