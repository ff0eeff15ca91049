"""How much time the daemon adds to a registration, and how much group commit saves."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from benchmarks.clients import CLIENTS, Crowd, Work, newcomers, work
from benchmarks.harness import summarise, timed
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_concurrent import SLOW_SYNC_MS, copied
from benchmarks.serving import serving
from benchmarks.workers import Workers, requests
from dspy_registry import RegistryWriter, WriterClient

SIZE: Final = 1_000
ONE, MANY = "one client", f"{CLIENTS} clients"
EMBEDDED: Final = "embedded"
ROUND_TRIP: Final = 500
"""Microseconds. The kernel wakes a process or thread three times on the way, and it decides when each runs."""


def _group_commit(name: str, sync_ms: float, limit: float, bench: Bench) -> Iterator[Result]:
    title = f"durable registrations a second, {MANY}"
    if sync_ms:
        title += f", each sync {sync_ms:g} ms"
    path = copied(bench, bench.upto(SIZE), name)
    with serving(path, sync_ms=sync_ms):
        found, group_sizes = _turns(path, title, bench)
    rates = {label: [each.rate for each in works] for label, works in found.items()}
    ratios = [many / one for many, one in zip(rates[MANY], rates[ONE], strict=True)]
    yield Result(
        name,
        title,
        "at least",
        limit,
        statistics.median(ratios),
        note="times one client that waits for each answer; the percentiles are of one registration",
        rounds=ratios,
        summaries=[summarise(label, [time for each in works for time in each.times]) for label, works in found.items()],
        facts={
            **{f"{label}, registrations/s": [round(rate) for rate in values] for label, values in rates.items()},
            "registrations in a commit": [round(size, 1) for size in group_sizes],
        },
    )


def _turns(path: Path, title: str, bench: Bench) -> tuple[dict[str, list[Work]], list[float]]:
    """The work of one client and of many, in turns, by label. Then, for each round, the registrations per commit."""
    rounds, seconds = (2, 0.2) if bench.quick else (9, 1.0)
    tick = bench.ticker(title, rounds + 1)
    found: dict[str, list[Work]] = {ONE: [], MANY: []}
    group_sizes = []
    infos = newcomers("alone")
    with WriterClient(path) as client, Crowd(path) as crowd:
        work(client, infos, seconds / 4)  # warming up
        crowd.work(seconds / 4)
        tick()
        for turn in range(rounds):
            if turn % 2:
                found[ONE].append(work(client, infos, seconds))
            before = client.status()
            found[MANY].append(crowd.work(seconds))
            after = client.status()
            group_sizes.append((after.requests - before.requests) / (after.groups - before.groups))
            if not turn % 2:
                found[ONE].append(work(client, infos, seconds))
            tick()
    return found, group_sizes


def _round_trip(bench: Bench) -> Iterator[Result]:
    """The same registrations through a daemon and by an embedded writer, in turns."""
    title = "a registration through the daemon, one client"
    rounds, each = (3, 20) if bench.quick else (15, 100)
    tick = bench.ticker(title, rounds)
    served, embedded = (copied(bench, bench.upto(SIZE), f"round-trip-{what}") for what in ("served", EMBEDDED))
    times: dict[str, list[list[int]]] = {ONE: [], EMBEDDED: []}
    infos = newcomers("alone")
    bare: list[int] = []
    with (
        serving(served),
        WriterClient(served) as client,
        RegistryWriter(embedded) as writer,
        Workers(_answer, [()]) as answering,
    ):
        registering = {ONE: client.register_module, EMBEDDED: writer.register_module}
        for info in itertools.islice(infos, each):  # warming up
            for register in registering.values():
                register(info)
        for _ in range(rounds):
            for taken in times.values():
                taken.append([])
            for info in itertools.islice(infos, each):
                for label, register in registering.items():
                    times[label][-1].append(timed(partial(register, info)))
                bare.append(timed(partial(answering.ask, info.name)))
            tick()
    medians = {label: [statistics.median(taken) / 1000 for taken in parts] for label, parts in times.items()}
    beyond = [ours - least for ours, least in zip(medians[ONE], medians[EMBEDDED], strict=True)]
    yield Result(
        "daemon_round_trip",
        title,
        "at most",
        ROUND_TRIP,
        statistics.median(beyond),
        unit="µs",
        note="more than with an embedded writer; the difference of medians",
        rounds=beyond,
        summaries=[summarise(label, [time for taken in parts for time in taken]) for label, parts in times.items()],
        facts={
            **{f"{label}, µs": [round(value, 1) for value in values] for label, values in medians.items()},
            "of it two processes that only answer, µs": round(statistics.median(bare) / 1000, 1),
        },
    )


def _answer(pipe: Connection) -> None:
    pipe.send("ready")
    for request in requests(pipe):
        pipe.send(request)


def _row(name: str, sync_ms: float, limit: float) -> Row:
    return Row(name, (name,), 22, partial(_group_commit, name, sync_ms, limit))


ROWS: Final = (
    _row("group_commit", 0.0, 3),
    _row("group_commit_slow_sync", SLOW_SYNC_MS, 16),  # at most 23, if nothing but the commit thread took time
    Row("daemon_round_trip", ("daemon_round_trip",), 4, _round_trip),
)
