"""Reads a second by number of reader processes, alone and beside a writer. A chart shows this row."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

from benchmarks.processes import Readers, Writer
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_concurrent import COMMITS_PER_SECOND, copied, names_read_and_written, windows
from benchmarks.stores import OURS, Opening, registry_opening
from benchmarks.stores.files import SQLite
from benchmarks.stores.peer import Peer
from benchmarks.stores.servers import Redis
from benchmarks.workloads import modules
from dspy_registry.registry_store.codec import encode

SIZE: Final = 1_000
PROCESSES: Final = (1, 2, 4)
PEERS: Final[tuple[type[Peer], ...]] = (SQLite, Redis)


def _throughput(bench: Bench) -> Iterator[Result]:
    """The registry, and the two stores that people most often share between processes."""
    size = bench.upto(SIZE)
    read, written = names_read_and_written(bench)
    path = copied(bench, size, "throughput")
    facts: dict[str, Any] = {}
    beside = f"{OURS}, beside {COMMITS_PER_SECOND:g} commits/s"
    tick = bench.ticker("reads a second by number of processes", 2 + len(PEERS))
    facts[OURS] = _rates(bench, registry_opening(path), read)
    tick()
    with Writer(path, written, COMMITS_PER_SECOND) as writer:
        writer.resume()
        facts[beside] = _rates(bench, registry_opening(path), read)
        writer.pause()
    tick()
    for peer_type in PEERS:
        peer = peer_type()
        if peer.missing() is None:
            with ExitStack() as stack:
                stack.callback(peer.stop)
                peer.start(bench.scratch(f"throughput-{peer.key}"), [(i.name, encode(i)) for i in modules(size)])
                asked = [name for name in read if not name.startswith("dspy.")]
                facts[peer.label] = _rates(bench, peer.opening(), asked)
        tick()
    most = str(PROCESSES[-1])
    yield Result(
        "throughput",
        f"reads a second of {most} processes",
        "at least",
        None,
        facts[OURS][most] / 1e6,
        unit="million/s",
        note="on two cores, two run at a time",
        facts={"reads/s by processes": facts},
    )


def _rates(bench: Bench, opening: Opening, names: list[str]) -> dict[str, float]:
    rounds, seconds = windows(bench)
    rounds = min(rounds, 5)
    found: dict[str, float] = {}
    with Readers(opening, names, PROCESSES[-1]) as readers:
        for count in PROCESSES:
            totals = [sum(readers.rates(count, seconds)) for _ in range(rounds)]
            found[str(count)] = round(statistics.median(totals))
    return found


ROWS: Final = (Row("throughput", ("throughput",), 18, _throughput),)
