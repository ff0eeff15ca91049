"""The reads of a typical request, alone and beside a writer. These rows have no target."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Final

from benchmarks.processes import Readers, Writer
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_concurrent import COMMITS_PER_SECOND, copied, names_read_and_written, windows
from benchmarks.stores import OURS, Opening
from benchmarks.workloads import MIXES, Mix, capabilities_asked, modules
from dspy_registry import Registry

SIZE: Final = 1_000
ASKED: Final = 1_024


def _mix(mix: Mix, bench: Bench) -> Iterator[Result]:
    title = f"requests a second, {mix.name}"
    size = bench.upto(SIZE)
    path = copied(bench, size, f"mix-{mix.name}")
    asked = capabilities_asked(modules(size), ASKED)
    _, written = names_read_and_written(bench)
    rounds, seconds = windows(bench)
    rounds = min(rounds, 5)
    tick = bench.ticker(title, rounds)
    alone, beside, ratios = [], [], []
    opening = Opening(OURS, partial(Registry, path), mix.request)
    with (
        Writer(path, written, COMMITS_PER_SECOND, newcomer_every=mix.newcomer_every) as writer,
        Readers(opening, asked, 1) as reader,
    ):
        for _ in range(rounds):
            alone.append(reader.rates(1, seconds)[0])
            writer.resume()
            beside.append(reader.rates(1, seconds)[0])
            writer.pause()
            ratios.append(beside[-1] / alone[-1])
            tick()
    every = f" (every {mix.newcomer_every}th adds or removes a module)" if mix.newcomer_every else ""
    yield Result(
        f"mix_{mix.name}",
        title,
        "at least",
        None,
        statistics.median(ratios),
        note=f"times the same alone; {COMMITS_PER_SECOND:g} commits a second{every}; the request: `{mix.request}`",
        rounds=ratios,
        facts={
            "alone, requests/s": round(statistics.median(alone)),
            "beside the writer, requests/s": round(statistics.median(beside)),
        },
    )


ROWS: Final = tuple(Row(f"mix_{mix.name}", (f"mix_{mix.name}",), 5, partial(_mix, mix)) for mix in MIXES)
