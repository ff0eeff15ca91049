"""Repeated reads, each of which verifies freshness, compared with a plain Python class with a dict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final, NamedTuple

from benchmarks.harness import Contender, Contest, compare
from benchmarks.rows import Bench, Result, Row
from benchmarks.stores import OURS
from benchmarks.stores.baselines import PlainDict
from benchmarks.workloads import CAPABILITIES, shuffled
from dspy_registry import Registry
from dspy_registry.readers.observed import BASES

SIZE: Final = 1_000
WORKING_SET: Final = 64
PASS: Final = 1_024
PLAIN: Final = "plain class with a dict"


class Call(NamedTuple):
    """A call. `limit`: how many times as long as the plain class it may take. `asks`: the kind of its argument."""

    result: str
    title: str
    limit: float
    statement: str
    asks: str = "name"


CALLS: Final = (
    Call("get_cached", "get_module, repeated", 1.5, "store.get_module({})"),
    Call(
        "find_by_capability_cached",
        "find_by_capability, repeated",
        2,
        "store.find_by_capability({})",
        "capability",
    ),
    Call("get_pool_type_cached", "get_pool_type, repeated", 2, "store.get_pool_type({})"),
    Call("has_native_cached", "has_native, repeated", 2, "store.has_native({})"),
    Call(
        "find_cached",
        "find(...) with the same arguments, repeated",
        4.5,  # 3.8 is the least: a call with three arguments by name, the word, a key of three made and hashed
        "store.find(capabilities=('reasoning', 'tool_use'), pool_type='general', max_memory='medium')",
    ),
    *(
        call
        for basis in BASES
        for call in (
            Call(
                f"estimate_{basis}_cached",
                f"estimate_duration on the basis {basis}, repeated",
                3.5,
                f"store.estimate_duration({{}}, 'large', {basis!r})",
            ),
            Call(
                f"routing_{basis}_cached",
                f"routing_recommendation on the basis {basis}, repeated",
                5,
                f"store.routing_recommendation({{}}, input_size=5000, basis={basis!r})",
            ),
        )
    ),
)


def contest(call: Call, bench: Bench, stack: ExitStack) -> Contest:
    """The registry and the plain class, with the same calls repeated."""
    dataset = bench.dataset(bench.upto(SIZE))
    asked = list(CAPABILITIES[:WORKING_SET]) if call.asks == "capability" else shuffled(dataset.names)[:WORKING_SET]
    arguments = (asked * PASS)[:PASS]
    registry = stack.enter_context(Registry(dataset.path))
    plain = PlainDict({word: registry.get(word, word) for word in asked})
    return Contest(
        [
            Contender(OURS, call.statement, partial(dict, store=registry)),
            Contender(PLAIN, "store.get({})", partial(dict, store=plain)),
        ],
        lambda _turn: arguments,
    )


def _measure(call: Call, bench: Bench) -> Iterator[Result]:
    with ExitStack() as stack:
        found = compare(contest(call, bench, stack), bench.plan, bench.ticker(call.title, bench.plan.rounds))
    yield Result(
        call.result,
        call.title,
        "at most",
        call.limit,
        found.ratio(OURS, PLAIN),
        note=f"times a {PLAIN}; {bench.upto(SIZE):,} modules",
        rounds=found.ratios(OURS, PLAIN),
        summaries=found.summaries(),
        facts=found.facts(),
    )


ROWS: Final = tuple(Row(call.result, (call.result,), 1.5, partial(_measure, call)) for call in CALLS)
