"""All rows, and how to choose and run them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks import (
    rows_cached,
    rows_concurrent,
    rows_daemon,
    rows_find,
    rows_first_reads,
    rows_health,
    rows_limits,
    rows_manifests,
    rows_memory,
    rows_mixes,
    rows_outage,
    rows_peers,
    rows_programs,
    rows_route,
    rows_sizes,
    rows_steps,
    rows_throughput,
    rows_uncached,
    rows_usage,
    rows_usage_readers,
    rows_versions,
    rows_watch,
    rows_writes,
)
from benchmarks.rows import Bench, Result, Row

FULL_SIZES: Final = (6, 1_000, 100_000, 1_000_000)
QUICK_SIZES: Final = (6, 1_000, 5_000)

ROWS: Final[tuple[Row, ...]] = (
    *rows_writes.BULK,
    *rows_cached.ROWS,
    *rows_route.ROWS,
    *rows_outage.ROWS,
    *rows_uncached.ROWS,
    *rows_steps.ROWS,
    *rows_peers.ROWS,
    *rows_concurrent.ROWS,
    *rows_first_reads.ROWS,
    *rows_mixes.ROWS,
    *rows_throughput.ROWS,
    *rows_sizes.ROWS,
    *rows_memory.ROWS,
    *rows_find.ROWS,
    *rows_writes.ROWS,
    *rows_daemon.ROWS,
    *rows_manifests.ROWS,
    *rows_usage.ROWS,
    *rows_usage_readers.ROWS,
    *rows_versions.ROWS,
    *rows_watch.ROWS,
    *rows_programs.ROWS,
    *rows_health.ROWS,
    *rows_limits.ROWS,
)
"""The bulk load comes first: it builds the largest data set, and needs memory that holds nothing else."""

RESULT_NAMES: Final = tuple(name for row in ROWS for name in row.results)

Say = Callable[[str, float], None]
"""Called with a description of the present work, and the share of it that is done (0 to 1)."""


def chosen(only: Collection[str]) -> list[Row]:
    """The rows that `only` names, by row or by result. Empty: all rows. Raises ValueError for an unknown name."""
    known = {row.name for row in ROWS} | set(RESULT_NAMES)
    unknown = sorted(set(only) - known)
    if unknown:
        raise ValueError(f"unknown rows: {', '.join(unknown)}; the rows are {', '.join(sorted(known))}")
    return [row for row in ROWS if not only or row.name in only or set(row.results) & set(only)]


def run(rows: list[Row], bench: Bench) -> Iterator[Result]:
    """The results of rows. If a row fails, its results have no figure, and their notes give the error."""
    for row in rows:
        pending = dict.fromkeys(row.results)
        try:
            for result in row.measure(bench):
                pending.pop(result.name)
                yield result
        except Exception as error:
            bench.failed.append(row.name)
            for name in pending:
                yield Result(name, name, "at most", None, None, note=f"failed: {error!r}")


@contextmanager
def bench_of(sizes: tuple[int, ...], *, quick: bool, say: Say, folder: Path | None = None) -> Iterator[Bench]:
    """A bench for rows, in a folder on a disk. The folder is removed at the end."""
    work = Path(tempfile.mkdtemp(prefix="dspy-registry-bench-", dir=folder or disk_folder()))
    try:
        yield Bench(work, tuple(sorted(sizes)), quick=quick, say=say)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def disk_folder() -> Path:
    """A folder for temporary files that is on a disk. A sync of a file system in memory would cost nothing."""
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
    return next((folder for folder in candidates if file_system(folder) not in ("tmpfs", "ramfs")), candidates[-1])


def file_system(folder: Path) -> str:
    """The type of the file system of a folder; "" when it is unknown."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    resolved = os.fspath(folder.resolve())
    found = ("", "")
    for line in mounts:
        _, point, kind, *_ = line.split()
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[0]):
            found = (point, kind)
    return found[1]


class Clock:
    """Overall progress: the rows done, each weighted by its usual duration."""

    def __init__(self, rows: list[Row], show: Callable[[float, str], None]) -> None:
        self._rows = rows
        self._show = show
        self._total = sum(row.seconds for row in rows) or 1.0
        self._done = 0.0
        self._current = 0.0
        self.started = time.monotonic()

    def say(self, what: str, share: float) -> None:
        """Show that a share (0 to 1) of the current row is done."""
        self._show((self._done + self._current * min(1.0, share)) / self._total, what)

    def begin(self, row: Row) -> None:
        """Show that a row begins, and that the row before is done."""
        self._done += self._current
        self._current = row.seconds
        self.say(row.name, 0.0)
