"""The rows of one process under pytest-benchmark: `pytest benchmarks/`.

pytest-benchmark times a pass of about a thousand operations of the registry. Before each round the other store makes
the same pass. `extra_info` has the median over the rounds of the registry's time divided by the other's.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from benchmarks import rows_cached, rows_find, rows_peers, rows_route, rows_uncached, rows_usage
from benchmarks.harness import UNROLLED, Contender, chunked
from benchmarks.rows import Bench, MakeContest
from benchmarks.stores import PEERS

pytestmark = pytest.mark.bench

ROUNDS = 15
CHUNK = 1024


def _contests() -> list[Any]:
    alone: dict[str, MakeContest] = {
        **rows_cached.CONTESTS,
        **rows_route.CONTESTS,
        **rows_uncached.CONTESTS,
        **rows_usage.CONTESTS,
        "find_uncached": rows_find.contest,
    }
    found = [pytest.param(make, None, id=name) for name, make in alone.items()]
    for manner in (rows_peers.REPEATED, rows_peers.FIRST):
        for peer_type in PEERS:
            make = partial(_with_peer, manner, peer_type)
            found.append(pytest.param(make, peer_type, id=f"{manner.row}_{peer_type.key}"))
    return found


def _with_peer(manner: rows_peers.Manner, peer_type: Any, bench: Bench, stack: ExitStack) -> Any:
    return rows_peers.contest(manner, peer_type(), bench, stack)


@pytest.mark.parametrize(("make", "peer_type"), _contests())
def test_row(make: MakeContest, peer_type: Any, bench: Bench, benchmark: Any) -> None:
    missing = peer_type().missing() if peer_type else None
    if missing:
        pytest.skip(f"not measured: {missing}")
    with ExitStack() as stack:
        contest = make(bench, stack)
        ours, *others = contest.contenders
        taken: dict[str, list[float]] = {contender.label: [] for contender in contest.contenders}
        turn = 0

        def pass_of(contender: Contender) -> tuple[list[list[tuple[Any, ...]]], dict[str, Any]]:
            return chunked(contest.asked(contender, turn), CHUNK), contender.namespace()

        def others_first() -> tuple[tuple[Any, ...], dict[str, Any]]:
            nonlocal turn
            turn += 1
            for other in others:
                chunks, names = pass_of(other)
                start = time.perf_counter_ns()
                other.once(chunks, names)
                taken[other.label].append(time.perf_counter_ns() - start)
            return pass_of(ours), {}

        benchmark.pedantic(ours.once, setup=others_first, rounds=ROUNDS, warmup_rounds=1)
        benchmark.extra_info["operations"] = sum(map(len, chunked(contest.asked(ours, 0), CHUNK))) * UNROLLED
        for other in others:
            theirs = statistics.median(taken[other.label])
            benchmark.extra_info[f"times {other.label}"] = round(benchmark.stats.stats.median * 1e9 / theirs, 3)
        assert benchmark.stats.stats.rounds == ROUNDS
