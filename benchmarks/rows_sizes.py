"""How the size of the registry affects reads, attaching and the bounded cache."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final

from benchmarks.harness import Arguments, Contender, Contest, Plan, compare
from benchmarks.probes import probe
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_uncached import PASS, Fresh, distinct
from benchmarks.workloads import CORE_NAMES, shuffled
from dspy_registry import Registry
from dspy_registry.readers.registry import DEFAULT_CACHE_SIZE

SMALL: Final = 1_000


def label_of(size: int) -> str:
    return f"{size:,} modules"


def _cached(bench: Bench) -> Iterator[Result]:
    """The same six names at every size, because the smallest registry has only these."""
    title = "repeated reads, by size of the registry"
    arguments = (list(CORE_NAMES) * PASS)[:PASS]
    datasets = {size: bench.dataset(size) for size in bench.sizes}
    with ExitStack() as stack:
        registries = {size: stack.enter_context(Registry(dataset.path)) for size, dataset in datasets.items()}
        contenders = [
            Contender(label_of(size), "store.get_module({})", partial(dict, store=registry))
            for size, registry in registries.items()
        ]
        tick = bench.ticker(title, bench.plan.rounds)
        found = compare(Contest(contenders, lambda _turn: arguments), bench.plan, tick)
    medians = {label: statistics.median(times) for label, times in found.medians.items()}
    yield Result(
        "sizes_cached",
        title,
        "at most",
        1.15,
        max(medians.values()) / min(medians.values()),
        note=f"times the quickest; the slowest size of {', '.join(medians)}",
        summaries=found.summaries(),
        facts=found.facts(),
    )


def _uncached(bench: Bench) -> Iterator[Result]:
    sizes = [size for size in bench.sizes if size >= PASS] or [bench.largest]
    datasets = {size: bench.dataset(size) for size in sizes}
    for dataset in datasets.values():
        dataset.warm()
    plan = Plan(rounds=3 if bench.quick else 61)
    passes = {label_of(size): distinct(dataset.names) for size, dataset in datasets.items()}
    smallest, largest = label_of(sizes[0]), label_of(sizes[-1])
    title = f"first reads of {largest}"
    tick = bench.ticker(title, plan.rounds)
    with ExitStack() as stack:
        contenders = [
            Contender(label_of(size), "store.get_module({})", Fresh(dataset.path, stack))
            for size, dataset in datasets.items()
        ]
        found = compare(Contest(contenders, passes, repeatable=False), plan, tick)
    yield Result(
        "sizes_uncached",
        title,
        "at most",
        2,
        found.ratio(largest, smallest),
        note=f"times those of {smallest}; names at random",
        rounds=found.ratios(largest, smallest),
        summaries=found.summaries(),
        facts=found.facts(),
    )


def _attach(bench: Bench) -> Iterator[Result]:
    """Each attach is in a fresh process, because a worker attaches only once."""
    smallest, largest = min(bench.sizes), bench.largest
    title = f"from opening to the first answer, registry of {label_of(largest)}"
    paths = {size: bench.dataset(size).path for size in (smallest, largest)}
    rounds = 3 if bench.quick else 15
    tick = bench.ticker(title, rounds)
    times: dict[int, list[float]] = {size: [] for size in paths}
    for turn in range(rounds):
        for size in paths if turn % 2 else reversed(paths):
            times[size].append(probe("attach", str(paths[size]), CORE_NAMES[0]))
        tick()
    ratios = [large / small for large, small in zip(times[largest], times[smallest], strict=True)]
    yield Result(
        "attach",
        title,
        "at most",
        2,
        statistics.median(ratios),
        note=f"times that of {label_of(smallest)}; in fresh processes",
        rounds=ratios,
        facts={f"{label_of(size)}, µs": round(statistics.median(times[size]) / 1000, 1) for size in paths},
    )


WARM_UP: Final = 8


def _bounded(bench: Bench) -> Iterator[Result]:
    """Reads of four times as many names as the cache keeps, compared with first reads of these names."""
    size = bench.upto(100_000)
    dataset = bench.dataset(size)
    bound = min(DEFAULT_CACHE_SIZE, size // 8)
    working_set = shuffled(dataset.names)[: 4 * bound]
    rounds = 3 if bench.quick else 25
    for order, order_of in ORDERS.items():
        title = f"working set of four times the cache, {order}"
        with ExitStack() as stack:
            bounded = stack.enter_context(Registry(dataset.path, cache_size=bound))
            for name in working_set * WARM_UP:  # until the content of the cache is stable
                bounded.get_module(name)
            contenders = [
                Contender("bounded cache", "store.get_module({})", partial(dict, store=bounded)),
                Contender("nothing cached", "store.get_module({})", Fresh(dataset.path, stack)),
            ]
            contest = Contest(contenders, order_of(working_set), repeatable=False)
            found = compare(contest, Plan(rounds=rounds), bench.ticker(title, rounds))
        yield Result(
            f"bounded_cache_{order}",
            title,
            "at least",
            1,
            found.ratio("nothing cached", "bounded cache"),
            note=f"times the speed of first reads; cache_size={bound:,}, {4 * bound:,} names",
            rounds=found.ratios("nothing cached", "bounded cache"),
            summaries=found.summaries(),
            facts=found.facts(),
        )


def _in_turn(working_set: list[str]) -> Arguments:
    """Cyclic order, which is the worst for a cache that forgets the least recently used entry."""

    def arguments(turn: int) -> list[str]:
        start = turn * PASS % len(working_set)
        return (working_set + working_set)[start : start + PASS]

    return arguments


def _at_random(working_set: list[str]) -> Arguments:
    def arguments(turn: int) -> list[str]:
        return random.Random(turn).sample(working_set, min(PASS, len(working_set)))

    return arguments


ORDERS: Final = {"random": _at_random, "cyclic": _in_turn}


ROWS: Final = (
    Row("sizes_cached", ("sizes_cached",), 2, _cached),
    Row("sizes_uncached", ("sizes_uncached",), 4, _uncached),
    Row("attach", ("attach",), 5, _attach),
    Row("bounded_cache", ("bounded_cache_random", "bounded_cache_cyclic"), 3, _bounded),
)
