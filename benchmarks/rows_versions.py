"""Reads by label and version, resolving a weighted label, and a registry whose modules have many versions."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.harness import Contender, Contest, compare, timed
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_cached import PASS, PLAIN, SIZE, WORKING_SET
from benchmarks.rows_concurrent import copied
from benchmarks.stores import OURS
from benchmarks.stores.baselines import PlainDict
from benchmarks.workloads import modules, shuffled
from dspy_registry import LabelUpdate, Registry, RegistryWriter

KEYS: Final = 100_000
VERSIONS: Final = 10
MANY: Final = 100_000
ONE_VERSION, TEN_VERSIONS = "one version", "ten versions"


def labelled(bench: Bench, name: str) -> tuple[Path, list[str]]:
    """A registry of which some modules have the labels `champion` and, split between two versions, `live`."""
    path = copied(bench, bench.upto(SIZE), name)
    chosen = shuffled(bench.dataset(bench.upto(SIZE)).names)[:WORKING_SET]
    with Registry(path) as registry:
        newer = [msgspec.structs.replace(registry[each], estimated_duration=4321) for each in chosen]
    with RegistryWriter(path) as writer:
        writer.register_modules(newer)
        writer.set_labels([LabelUpdate(each, "champion", 1) for each in chosen])
        writer.set_labels([LabelUpdate(each, "live", {1: 90, 2: 10}) for each in chosen])
    return path, chosen


def contest(bench: Bench, stack: ExitStack) -> Contest:
    """Repeated look-ups by label, and of the same strings in a plain class with a dict."""
    path, names = labelled(bench, "labels")
    asked = [f"{name}@champion" for name in names]
    registry = stack.enter_context(Registry(path))
    plain = PlainDict({word: registry.get_module(word) for word in asked})
    arguments = (asked * PASS)[:PASS]
    return Contest(
        [
            Contender(OURS, "store.get_module({})", partial(dict, store=registry)),
            Contender(PLAIN, "store.get({})", partial(dict, store=plain)),
        ],
        lambda _turn: arguments,
    )


def _by_label(bench: Bench) -> Iterator[Result]:
    title = "get_module('name@label'), repeated"
    with ExitStack() as stack:
        found = compare(contest(bench, stack), bench.plan, bench.ticker(title, bench.plan.rounds))
    yield Result(
        "get_label_cached",
        title,
        "at most",
        1.6,
        found.ratio(OURS, PLAIN),
        note=f"times a {PLAIN}; {bench.upto(SIZE):,} modules",
        rounds=found.ratios(OURS, PLAIN),
        summaries=found.summaries(),
        facts=found.facts(),
    )


def _resolve(bench: Bench) -> Iterator[Result]:
    title = "resolve of a weighted label with a key"
    path, (name, *_) = labelled(bench, "resolving")
    asked = f"{name}@live"
    keys = [f"user-{number}" for number in range(PASS)]
    with Registry(path) as registry:
        contender = Contender(OURS, f"store.resolve({asked!r}, key={{}})", partial(dict, store=registry))
        found = compare(Contest([contender], lambda _turn: keys), bench.plan, bench.ticker(title, bench.plan.rounds))
        every = [f"user-{number}" for number in range(KEYS)]
        before = [registry.resolve(asked, key=key).version for key in every]
        with RegistryWriter(path) as writer:
            writer.set_label(name, "live", {1: 80, 2: 20})
        after = [registry.resolve(asked, key=key).version for key in every]
    micros = [nanoseconds / 1000 for nanoseconds in found.medians[OURS]]
    yield Result(
        "resolve_key",
        title,
        "at most",
        2,
        statistics.median(micros),
        unit="µs",
        rounds=micros,
        summaries=found.summaries(),
    )
    shares = Counter(before)
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    yield Result(
        "label_share",
        f"share of a weight of 90 % over {KEYS:,} keys",
        "at most",
        0.6,
        abs(100 * shares[1] / KEYS - 90),
        unit="percentage points",
        note="away from 90",
        facts={
            "keys of each version": dict(shares),
            "keys moved when 90:10 became 80:20": len(moved),
            "of them to the version that grew": sum(new == 2 for _, new in moved),
        },
    )


def _many_versions(bench: Bench) -> Iterator[Result]:
    """Cached reads and attaching, of a registry with one version of each module and of one with ten."""
    size = bench.upto(MANY)
    title = f"{size:,} modules of {VERSIONS} versions"
    path = copied(bench, size, "versions")
    with RegistryWriter(path) as writer:
        for number in range(1, VERSIONS):
            bench.say(title, number / (VERSIONS + 2))
            newer = (msgspec.structs.replace(info, estimated_duration=number) for info in modules(size))
            writer.register_modules(list(newer))
    paths = {ONE_VERSION: bench.dataset(size).path, TEN_VERSIONS: path}
    names = (shuffled(bench.dataset(size).names)[:WORKING_SET] * PASS)[:PASS]
    with ExitStack() as stack:
        registries = {label: stack.enter_context(Registry(each)) for label, each in paths.items()}
        contenders = [
            Contender(label, "store.get_module({})", partial(dict, store=registry))
            for label, registry in registries.items()
        ]
        found = compare(Contest(contenders, lambda _turn: names), bench.plan)
    yield Result(
        "versions_cached",
        f"get_module, repeated, {title}",
        "at most",
        1.05,
        found.ratio(TEN_VERSIONS, ONE_VERSION),
        note="times the same with one version each",
        rounds=found.ratios(TEN_VERSIONS, ONE_VERSION),
        summaries=found.summaries(),
        facts=found.facts(),
    )
    times = _attaching(paths, 5 if bench.quick else 61)
    ratios = [ten / one for ten, one in zip(times[TEN_VERSIONS], times[ONE_VERSION], strict=True)]
    yield Result(
        "versions_attach",
        f"opening a registry, {title}",
        "at most",
        1.1,
        statistics.median(times[TEN_VERSIONS]) / statistics.median(times[ONE_VERSION]),
        note="times the same with one version each",
        rounds=ratios,
        facts={f"{label}, µs": round(statistics.median(each) / 1000, 1) for label, each in times.items()},
    )


def _attaching(paths: dict[str, Path], rounds: int) -> dict[str, list[int]]:
    times: dict[str, list[int]] = {label: [] for label in paths}
    for _ in range(rounds):
        for label, path in paths.items():
            times[label].append(timed(lambda path=path: Registry(path).close()))  # type: ignore[misc]
    return times


ROWS: Final = (
    Row("get_label_cached", ("get_label_cached",), 2, _by_label),
    Row("resolve_key", ("resolve_key", "label_share"), 3, _resolve),
    Row("versions", ("versions_cached", "versions_attach"), 90, _many_versions),
)
