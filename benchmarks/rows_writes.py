"""Durable writes, compared with the same bytes written by hand."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Final

import msgspec

from benchmarks.datasets import build_from
from benchmarks.harness import summarise, timed
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_concurrent import copied
from benchmarks.stores import OURS
from benchmarks.stores.by_hand import ByHand, captured
from benchmarks.workloads import CORE_NAMES, SEED, SHARED_CAPABILITY, modules
from dspy_registry import ModuleInfo, RegistryWriter

BY_HAND: Final = "hand-written"
SMALL: Final = 1_000
PER_ROUND: Final = 8
BULK_ROUNDS: Final = 3


def newcomers(count: int, *, shared: bool) -> list[ModuleInfo]:
    """Modules that are in no data set. All have the shared capability, which half of a data set has, or none."""
    draw = random.Random(SEED + 3)
    found = []
    for number, info in enumerate(modules(count + len(CORE_NAMES))):
        words = [word for word in info.capabilities if word != SHARED_CAPABILITY] + [SHARED_CAPABILITY] * shared
        name = f"northwind.{info.name.partition('.')[2]}{draw.randrange(10**6)}v{number}"
        found.append(msgspec.structs.replace(info, name=name, capabilities=tuple(words)))
    return found


def _register(name: str, wanted: int | None, shared: bool, limit: float, bench: Bench) -> Iterator[Result]:
    size = bench.upto(wanted or bench.largest)
    title = f"one durable registration, {size:,} modules"
    if shared:
        title += f", a capability shared by {size // 2:,}"
    rounds = 3 if bench.quick else 21
    tick = bench.ticker(title, rounds)
    infos = iter(newcomers(rounds * PER_ROUND + 1, shared=shared))
    ours_at, theirs_at = copied(bench, size, f"{name}-ours"), copied(bench, size, f"{name}-by-hand")
    times: dict[str, list[list[float]]] = {OURS: [], BY_HAND: []}
    spent: dict[str, list[int]] = {OURS: [], BY_HAND: []}
    with RegistryWriter(ours_at) as writer, closing(ByHand(theirs_at)) as by_hand, captured() as commits:
        writer.register_module(next(infos))
        by_hand.commit(commits.pop())
        for _ in range(rounds):
            for taken in times.values():
                taken.append([])
            for _ in range(PER_ROUND):
                begun = time.process_time_ns()
                times[OURS][-1].append(timed(partial(writer.register_module, next(infos))))
                half = time.process_time_ns()
                times[BY_HAND][-1].append(timed(partial(by_hand.commit, commits[-1])))
                spent[OURS].append(half - begun)
                spent[BY_HAND].append(time.process_time_ns() - half)
            tick()
    ratios = [
        statistics.median(ours) / statistics.median(theirs)
        for ours, theirs in zip(times[OURS], times[BY_HAND], strict=True)
    ]
    last = commits[-1]
    yield Result(
        name,
        title,
        "at most",
        limit,
        statistics.median(ratios),
        note="times a hand-written py-lmdb commit of the same bytes",
        rounds=ratios,
        summaries=[summarise(label, [time for part in taken for time in part]) for label, taken in times.items()],
        facts={
            "keys written": len(last.puts),
            "bytes of values": last.value_bytes,
            **{f"{label}, processor µs": round(statistics.median(each) / 1000) for label, each in spent.items()},
        },
    )


def _bulk(bench: Bench) -> Iterator[Result]:
    """Load by hand and with the registry, in turns. The last registry becomes the data set of its size."""
    size = bench.largest
    title = f"register_modules of {size:,} modules"
    infos = list(modules(size))
    rounds = 1 if bench.quick else BULK_ROUNDS
    ours, theirs = [], []
    for turn in range(rounds):
        with closing(ByHand(bench.scratch("bulk-by-hand"))) as by_hand:
            theirs.append(timed(partial(by_hand.load, infos, CORE_NAMES)) / 1e9)
        progress = partial(_progress, bench, title, turn, rounds)
        dataset = build_from(bench.scratch(f"registry-{size}"), infos, progress)
        ours.append(dataset.seconds)
    bench.adopt(size, dataset)
    bench.scratch("bulk-by-hand")
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    yield Result(
        "bulk_load",
        title,
        "at most",
        3,
        statistics.median(ratios),
        note="times a hand-written bulk load; same records and postings, and only the registry reports progress",
        rounds=ratios,
        facts={
            "registry, s": round(statistics.median(ours), 2),
            "hand-written, s": round(statistics.median(theirs), 2),
        },
    )


def _progress(bench: Bench, title: str, turn: int, rounds: int, share: float) -> None:
    bench.say(title, (turn + share) / rounds)


def _row(name: str, wanted: int | None, shared: bool, limit: float, seconds: float) -> Row:
    return Row(name, (name,), seconds, partial(_register, name, wanted, shared, limit))


BULK: Final = (Row("bulk_load", ("bulk_load",), 150, _bulk),)
ROWS: Final = (
    # A commit of few pages is quick, so the same processor time of the registry weighs more; a quick disk adds to that.
    _row("register_small", SMALL, False, 2.2, 3),
    _row("register_large", None, False, 1.5, 8),
    _row("register_shared", None, True, 1.5, 8),
)
