"""Decisions per request: `route` and `Router`, compared with a plain class and with `litellm.Router`."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.floors import RouteByHand, by_eventfd, by_locks
from benchmarks.harness import Comparison, Contender, Contest, compare, summarise
from benchmarks.rows import Bench, MakeContest, Result, Row
from benchmarks.rows_cached import PLAIN
from benchmarks.stores import OURS
from benchmarks.stores.baselines import PlainDict
from dspy_registry import ModuleInfo, Registry, RegistryWriter, Router, UsageReporter

CANDIDATES: Final = 10
CAPABILITY: Final = "answering"
REPEATED: Final = f"store.route('{CAPABILITY}', input_size=1800, deadline_ms=8000)"
COMPUTED: Final = f"store.route('{CAPABILITY}', input_size=1800, deadline_ms={{}})"
BY_HAND: Final = "its parameters, a clock and a key by hand"
STRATEGIES: Final = {"simple-shuffle": (8.0, 150.0), "latency-based-routing": (20.0, 350.0)}
"""Of `litellm.Router`. How many times as quick `route` must be: computed, and repeated."""
MOST_ADDED: Final = 60.0
TIMES_LESS_ADDED: Final = 20.0
PASS: Final = 1_024
MESSAGES: Final = [{"role": "user", "content": "Which of them is the largest?"}]


def registry_of_ten(bench: Bench, name: str, stack: ExitStack) -> Registry:
    """A registry of ten modules with one capability, beside the core modules."""
    path: Path = bench.scratch(name)
    with RegistryWriter(path) as writer:
        writer.register_modules(
            [
                ModuleInfo(
                    f"acme.Answer{number}", capabilities=(CAPABILITY,), estimated_duration=100 + number * 37 % 91
                )
                for number in range(CANDIDATES)
            ]
        )
    return stack.enter_context(Registry(path))


def repeated(bench: Bench, stack: ExitStack) -> Contest:
    """The same decision again and again, a look-up in a dict, and the least that a call of `route` takes."""
    registry = registry_of_ten(bench, "route_cached", stack)
    plain = PlainDict({"a": 1})
    return Contest(
        [
            Contender(OURS, REPEATED, partial(dict, store=registry)),
            Contender(PLAIN, "store.get({})", partial(dict, store=plain)),
            Contender(BY_HAND, REPEATED, partial(dict, store=RouteByHand(None))),
        ],
        lambda _turn: ["a"] * PASS,
    )


def computed(bench: Bench, stack: ExitStack) -> Contest:
    """Each time with a deadline that was not asked for before."""
    registry = registry_of_ten(bench, "route_computed", stack)
    deadlines = itertools.count(1_000)
    return Contest(
        [Contender(OURS, COMPUTED, partial(dict, store=registry))],
        lambda _turn: [next(deadlines) for _ in range(PASS)],
        repeatable=False,
    )


def _repeated(bench: Bench) -> Iterator[Result]:
    title = f"route among {CANDIDATES}, repeated"
    found = _compared(repeated, title, bench)
    yield Result(
        "route_cached",
        title,
        "at most",
        10,
        found.ratio(OURS, PLAIN),
        note=f"times a {PLAIN}",
        rounds=found.ratios(OURS, PLAIN),
        summaries=found.summaries(),
        facts={**found.facts(), f"times {BY_HAND}": round(found.ratio(OURS, BY_HAND), 2)},
    )


def _computed(bench: Bench) -> Iterator[Result]:
    title = f"route among {CANDIDATES}, computed"
    found = _compared(computed, title, bench)
    rounds = [nanoseconds / 1000 for nanoseconds in found.medians[OURS]]
    yield Result(
        "route_computed",
        title,
        "at most",
        20,
        statistics.median(rounds),
        unit="µs",
        note="with a deadline that was not asked for before",
        rounds=rounds,
        summaries=found.summaries(),
    )


def _compared(make: MakeContest, title: str, bench: Bench) -> Comparison:
    with ExitStack() as stack:
        return compare(make(bench, stack), bench.plan, bench.ticker(title, bench.plan.rounds))


# litellm


@contextmanager
def _litellm() -> Iterator[Any]:
    """The package, with an event loop for what it asks of one: it would make one itself, and never close it."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it fetches its price list from the network
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield importlib.import_module("litellm")
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _deployments() -> list[dict[str, Any]]:
    return [
        {
            "model_name": "answering",
            "litellm_params": {"model": f"openai/model-{number}", "api_key": "none", "mock_response": "yes"},
        }
        for number in range(CANDIDATES)
    ]


def _against_litellm(bench: Bench) -> Iterator[Result]:
    title = f"route among {CANDIDATES}, against litellm.Router choosing among {CANDIDATES} deployments"
    tick = bench.ticker(title, len(STRATEGIES))
    with ExitStack() as stack:
        litellm = stack.enter_context(_litellm())
        registry = registry_of_ten(bench, "route_litellm", stack)
        deadlines = itertools.count(1_000)
        for strategy, (of_computed, of_repeated) in STRATEGIES.items():
            router = litellm.Router(model_list=_deployments(), routing_strategy=strategy)
            theirs = partial(router.get_available_deployment, model="answering", messages=MESSAGES)
            ways: dict[str, tuple[float, Callable[[], object]]] = {
                "computed": (
                    of_computed,
                    lambda: registry.route(CAPABILITY, input_size=1800, deadline_ms=next(deadlines)),
                ),
                "repeated": (of_repeated, lambda: registry.route(CAPABILITY, input_size=1800, deadline_ms=8000)),
            }
            for way, (limit, ours) in ways.items():
                yield _times_as_quick(
                    f"route_{way}_litellm_{strategy}", f"{title}, {strategy}, {way}", limit, ours, theirs, bench
                )
            tick()


def _times_as_quick(
    name: str, title: str, limit: float, ours: Callable[[], object], theirs: Callable[[], object], bench: Bench
) -> Result:
    rounds = _rounds(bench)
    taken = {OURS: [_microseconds(ours, 400) for _ in range(rounds)], "litellm": []}
    taken["litellm"] = [_microseconds(theirs, 40) for _ in range(rounds)]
    ratios = [one / other for one, other in zip(taken["litellm"], taken[OURS], strict=True)]
    summaries = [summarise(label, [each * 1000 for each in values]) for label, values in taken.items()]
    return Result(name, title, "at least", limit, statistics.median(ratios), "x", "times as quick", ratios, summaries)


# Router


def _router_call(bench: Bench) -> Iterator[Result]:
    title = "Router.call around an empty function, report included"
    rounds = _rounds(bench)
    tick = bench.ticker(title, rounds)
    mocked = {"messages": MESSAGES, "mock_response": "yes", "api_key": "none"}
    with ExitStack() as stack:
        litellm = stack.enter_context(_litellm())
        theirs = litellm.Router(model_list=_deployments())
        registry = registry_of_ten(bench, "router_call", stack)
        reporter = stack.enter_context(UsageReporter(registry.path))
        router = Router(registry, {f"acme.Answer{number}": _empty for number in range(CANDIDATES)}, reporter)
        hand_overs = {"an eventfd": stack.enter_context(by_eventfd()), "two locks": stack.enter_context(by_locks())}
        cpu = time.process_time_ns
        added, less, passed = [], [], []
        handed: dict[str, list[float]] = {by: [] for by in hand_overs}
        for _ in range(rounds):
            ours = _microseconds(router.call, 200, cpu) - _microseconds(_empty, 200, cpu)
            whole = _microseconds(partial(theirs.completion, model="answering", messages=MESSAGES), 20, cpu)
            alone = _microseconds(partial(litellm.completion, model="openai/model-0", **mocked), 20, cpu)
            added.append(ours)
            less.append((whole - alone) / ours)
            passed.append(_microseconds(router.call, 200))
            for by, hand_over in hand_overs.items():
                handed[by].append(_microseconds(hand_over, 200, cpu))
            tick()
    facts = {
        "added, µs": [round(each, 1) for each in added],
        "time passed, µs": round(statistics.median(passed), 1),
        **{
            f"to hand an empty job to a thread by {by}, µs": round(statistics.median(taken), 1)
            for by, taken in handed.items()
        },
    }
    note = "more than the function; processor time of all threads"
    yield Result("router_call", title, "at most", MOST_ADDED, statistics.median(added), "µs", note, added, facts=facts)
    yield Result(
        "router_call_litellm",
        f"{title}, against what litellm.Router.completion adds to a mocked completion",
        "at least",
        TIMES_LESS_ADDED,
        statistics.median(less),
        note="times less added; processor time of all threads",
        rounds=less,
        facts=facts,
    )


def _empty() -> None:
    return None


def _rounds(bench: Bench) -> int:
    return 3 if bench.quick else 15


def _microseconds(call: Callable[[], object], times: int, clock: Callable[[], int] = time.perf_counter_ns) -> float:
    """Of one call: the mean of many, after one that is not timed."""
    call()
    start = clock()
    for _ in range(times):
        call()
    return (clock() - start) / times / 1000


_OF_LITELLM: Final = tuple(
    f"route_{way}_litellm_{strategy}" for strategy in STRATEGIES for way in ("computed", "repeated")
)
ROWS: Final = (
    Row("route_cached", ("route_cached",), 1.5, _repeated),
    Row("route_computed", ("route_computed",), 1.5, _computed),
    Row("route_litellm", _OF_LITELLM, 8.0, _against_litellm),
    Row("router_call", ("router_call", "router_call_litellm"), 15.0, _router_call),
)
