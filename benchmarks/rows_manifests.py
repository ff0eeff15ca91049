"""How long it takes until a reader sees a saved manifest, and whether a checkout makes only one commit.

A daemon follows a folder. This process saves a file, and then reads its own Registry repeatedly until it has the new
value. The time begins when the save has returned.
"""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from benchmarks.harness import summarise
from benchmarks.manifest_tree import BRANCHES, SAVES, Tree
from benchmarks.rows import Bench, Result, Row
from benchmarks.serving import serving
from benchmarks.workers import PATIENCE
from benchmarks.workloads import SEED
from dspy_registry import Registry

MANY: Final = 1_000
TARGET_MS: Final = 200
POLL: Final = 0.0002  # seconds
LATE: Final = 2.5  # seconds to wait for a second commit: the daemon looks again every two


@contextmanager
def _followed(tree: Tree) -> Iterator[Registry]:
    """A reader of a registry whose daemon has loaded the tree and follows its changes."""
    path = tree.folder.with_name(f"{tree.folder.name}-registry")
    with serving(path, "--manifests", str(tree.folder)), Registry(path) as registry:
        _until(lambda: tree.last in registry)
        yield registry


def _files(wanted: int, bench: Bench) -> int:
    return bench.upto(min(wanted, 100) if bench.quick else wanted)


def _until(condition: Callable[[], bool]) -> int:
    """Wait until the condition holds. Returns the nanoseconds waited. Raises TimeoutError."""
    start = time.perf_counter_ns()
    while not condition():
        if time.perf_counter_ns() - start > PATIENCE * 1e9:
            raise TimeoutError("the reader did not see the change in time")
        time.sleep(POLL)
    return time.perf_counter_ns() - start


def _takes(registry: Registry, name: str, duration: int) -> bool:
    return registry[name].estimated_duration == duration


def _saved(name: str, wanted: int, bench: Bench) -> Iterator[Result]:
    tree = Tree(bench.scratch(name), _files(wanted, bench))
    title = "from saving a manifest until a reader sees it"
    if tree.files > 1:
        title += f", in a tree of {tree.files:,} files"
    times = _save_times(tree, 3 if bench.quick else 40, bench, title)
    summaries = [summarise(way, taken) for way, taken in times.items()]
    yield Result(
        name,
        title,
        "at most",
        TARGET_MS,
        max(summary.median for summary in summaries) / 1e6,
        unit="ms",
        note=f"the slower of {' and '.join(times)}",
        summaries=summaries,
        facts={f"{way}, ms": [round(each / 1e6, 1) for each in taken] for way, taken in times.items()},
    )


def _save_times(tree: Tree, rounds: int, bench: Bench, title: str) -> dict[str, list[int]]:
    """Nanoseconds until a reader sees each save, by way of saving. The ways take turns."""
    draw = random.Random(SEED + 5)
    tick = bench.ticker(title, rounds)
    times: dict[str, list[int]] = {way: [] for way in SAVES}
    duration = 0
    with _followed(tree) as registry:
        for _ in range(rounds):
            for way, save in SAVES.items():
                duration += 1
                time.sleep(draw.uniform(0.1, 0.2))  # people save at random times
                save(tree.file(0), tree.text(0, duration))
                times[way].append(_until(partial(_takes, registry, tree.first, duration)))
            tick()
    return times


def _checkout(bench: Bench) -> Iterator[Result]:
    files = _files(MANY, bench)
    title = f"commits made by a checkout of {files:,} manifests"
    result = partial(Result, "manifest_checkout", title, "at most", 1, unit="commits")
    if shutil.which("git") is None:
        yield result(None, note="not measured: git is not on the path (apt-get install git)")
        return
    tree = Tree(bench.scratch("manifest-checkout"), files)
    tree.keep_branches()
    times, commits = _checkouts(tree, bench, title)
    yield result(
        float(max(commits)),
        note=f"the most of {len(commits)} checkouts; percentiles: time from the end of git until a reader sees it",
        rounds=[float(count) for count in commits],
        summaries=[summarise("git checkout", times)],
        facts={"ms": [round(each / 1e6, 1) for each in times], "commits": commits},
    )


def _checkouts(tree: Tree, bench: Bench, title: str) -> tuple[list[int], list[int]]:
    """For each checkout: nanoseconds until a reader sees it, and the number of commits."""
    rounds, pause = (2, 0.3) if bench.quick else (9, 1.0)
    tick = bench.ticker(title, rounds)
    times, revisions = [], []
    with _followed(tree) as registry:
        time.sleep(pause)
        for branch, duration in (list(BRANCHES.items()) * rounds)[:rounds]:
            revisions.append(registry.revision)
            tree.check_out(branch)
            times.append(_until(partial(_takes, registry, tree.last, duration)))
            time.sleep(pause)
            tick()
        time.sleep(0.0 if bench.quick else LATE)
        revisions.append(registry.revision)
    return times, [after - before for before, after in itertools.pairwise(revisions)]


def _row(name: str, files: int, seconds: float) -> Row:
    return Row(name, (name,), seconds, partial(_saved, name, files))


ROWS: Final = (
    _row("manifest_saved", 1, 18),
    _row("manifest_saved_in_tree", MANY, 22),
    Row("manifest_checkout", ("manifest_checkout",), 20, _checkout),
)
