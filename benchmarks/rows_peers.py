"""Reads compared with the stores that people would use instead. Records and decoded structs are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from benchmarks.harness import Arguments, Contender, Contest, Namespace, Plan, compare
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_uncached import PASS, Fresh, distinct
from benchmarks.stores import OURS, PEERS, Peer
from benchmarks.workloads import modules, shuffled
from dspy_registry import Registry
from dspy_registry.registry_store.codec import encode

SIZE: Final = 1_000
WORKING_SET: Final = 64
CACHED: Final = {
    "redis": 300,
    "manager": 400,
    "sqlite": 50,
    "diskcache": 60,
    "ultradict": 8,
    "ultradict_structs": None,
    "rocksdict": 8,
}
UNCACHED: Final = {
    "redis": 10,  # 12 where both share a processor, 31 to 38 where each answer wakes one
    "manager": 10,  # likewise
    "sqlite": 1.7,  # 2.6 on an AMD EPYC, 1.8 on an Intel Xeon
    "diskcache": 3,
    "ultradict": None,
    "ultradict_structs": None,
    "rocksdict": None,
}


@dataclass(frozen=True)
class Manner:
    """A way of reading. `limits`: how many times as quick as each peer the registry must be; None: no target."""

    row: str
    title: str
    limits: Mapping[str, float | None]
    repeatable: bool


REPEATED: Final = Manner("peers_cached", "get_module, repeated", dict(CACHED), True)
FIRST: Final = Manner("peers_uncached", "get_module, nothing cached", dict(UNCACHED), False)


def _measure(manner: Manner, bench: Bench) -> Iterator[Result]:
    for peer_type in PEERS:
        peer = peer_type()
        missing = peer.missing()
        if missing is not None:
            yield _result(manner, peer, None, note=f"not measured: {missing}")
            continue
        try:
            yield _compared(manner, bench, peer)
        except Exception as error:  # the other peers are still measured
            bench.failed.append(f"{manner.row}_{peer.key}")
            yield _result(manner, peer, None, note=f"failed: {error!r}")


def _result(manner: Manner, peer: Peer, figure: float | None, **more: Any) -> Result:
    name, title = f"{manner.row}_{peer.key}", f"{manner.title}, against {peer.label}"
    return Result(name, title, "at least", manner.limits[peer.key], figure, **more)


def contest(manner: Manner, peer: Peer, bench: Bench, stack: ExitStack) -> Contest:
    """The registry and a peer, filled with the same records."""
    size = bench.upto(SIZE)
    dataset = bench.dataset(size)
    records = [(info.name, encode(info)) for info in modules(size)]
    names = [name for name, _ in records]
    stack.callback(peer.stop)
    peer.start(bench.scratch(f"peer-{peer.key}"), records)
    opening = peer.opening()
    theirs = stack.enter_context(closing(opening.open()))
    ours = _same(stack.enter_context(Registry(dataset.path))) if manner.repeatable else Fresh(dataset.path, stack)
    return Contest(
        [
            Contender(OURS, "store.get_module({})", ours),
            Contender(peer.label, opening.statement, _same(theirs)),
        ],
        _repeated(names) if manner.repeatable else distinct(names),
        manner.repeatable,
    )


def _compared(manner: Manner, bench: Bench, peer: Peer) -> Result:
    plan = Plan(rounds=3 if bench.quick else 9, milliseconds=bench.plan.milliseconds)
    with ExitStack() as stack:
        tick = bench.ticker(f"{manner.title}, {peer.label}", plan.rounds)
        found = compare(contest(manner, peer, bench, stack), plan, tick)
    return _result(
        manner,
        peer,
        found.ratio(peer.label, OURS),
        note=f"times as quick; {bench.upto(SIZE):,} modules",
        rounds=found.ratios(peer.label, OURS),
        summaries=found.summaries(),
        facts={**found.facts(), "version": peer.version(), "settings": peer.settings},
    )


def _same(store: Any) -> partial[Namespace]:
    return partial(dict, store=store)


def _repeated(names: list[str]) -> Arguments:
    arguments = (shuffled(names)[:WORKING_SET] * PASS)[:PASS]
    return lambda _turn: arguments


def _row(manner: Manner, seconds: float) -> Row:
    names = tuple(f"{manner.row}_{peer.key}" for peer in PEERS)
    return Row(manner.row, names, seconds, partial(_measure, manner))


ROWS: Final = (_row(REPEATED, 12), _row(FIRST, 12))
