"""Timing: contenders take turns round by round, and are compared within a round.

A contender is a statement, as in `timeit`, so that what is timed is the call that a user writes, attribute look-up
included, and eight of them stand in one turn of the loop, so that the loop itself does not count. Garbage
collection stays on. Of each round the median of many short batches is taken; a ratio is the median over the
rounds of the ratios within each. Percentiles are of operations timed one by one, less what the clock costs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

UNROLLED: Final = 8
_VARIABLES: Final = tuple(f"a{number}" for number in range(UNROLLED))

Namespace = dict[str, Any]


class Summary(msgspec.Struct, frozen=True):
    """Percentiles of `count` values, in `unit`."""

    label: str
    unit: str
    count: int
    median: float
    p90: float
    p99: float
    p999: float
    maximum: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of the sorted values does not exceed."""
    rank = -(-len(ordered) * share // 1)
    return ordered[max(0, min(len(ordered) - 1, int(rank) - 1))]


def summarise(label: str, values: Iterable[float], unit: str = "ns") -> Summary:
    """Percentiles of values. Raises ValueError when there are none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError(f"nothing was measured of {label}")
    median, p90, p99, p999 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99, 0.999))
    return Summary(label, unit, len(ordered), median, p90, p99, p999, ordered[-1])


@dataclass
class Contender:
    """Something to time. `{}` in `statement` is the argument; `namespace` is called, untimed, before each pass."""

    label: str
    statement: str
    namespace: Callable[[], Namespace]
    _batch: Callable[..., None] = field(init=False, repr=False)
    _singles: Callable[..., None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._batch = _compiled(_BATCH, [self.statement.replace("{}", variable) for variable in _VARIABLES])
        self._singles = _compiled(_SINGLES, [self.statement.replace("{}", "a0")])

    def batches(self, chunks: Sequence[Sequence[tuple[Any, ...]]], repeats: int) -> list[float]:
        """Nanoseconds per operation, of each chunk."""
        names = self.namespace()
        clock, run = time.perf_counter_ns, self._batch
        found = []
        for _ in range(repeats):
            for chunk in chunks:
                start = clock()
                run(chunk, names)
                found.append((clock() - start) / (len(chunk) * UNROLLED))
        return found

    def once(self, chunks: Sequence[Sequence[tuple[Any, ...]]], names: Namespace) -> None:
        """Run all chunks without timing them, for a caller with another clock."""
        for chunk in chunks:
            self._batch(chunk, names)

    def singles(self, arguments: Sequence[Any]) -> list[int]:
        """Nanoseconds of each operation, with the clock's share."""
        found: list[int] = []
        self._singles(arguments, self.namespace(), found.append, time.perf_counter_ns)
        return found


_BATCH: Final = """
def run(chunk, names):
    {unpack}
    for {variables} in chunk:
        {body}
"""
_SINGLES: Final = """
def run(arguments, names, append, clock):
    {unpack}
    for a0 in arguments:
        start = clock()
        {body}
        append(clock() - start)
"""
_NEXT_LINE: Final = "\n        "  # and not a semicolon, so that a statement may be a `with` of one line


def _compiled(template: str, statements: list[str]) -> Callable[..., None]:
    """What is named in a statement becomes a local variable, as it would be in a worker's loop."""
    code = compile(statements[0], "statement", "exec")
    free = [name for name in code.co_names if name in _BOUND]
    source = template.format(
        unpack="; ".join(f"{name} = names[{name!r}]" for name in free) or "pass",
        variables=", ".join(_VARIABLES),
        body=_NEXT_LINE.join(statements),
    )
    scope: Namespace = {}
    exec(compile(source, "benchmark", "exec"), scope)
    run: Callable[..., None] = scope["run"]
    return run


_BOUND: Final = frozenset({"store", "lock", "counts"})


def timed(call: Callable[[], object]) -> int:
    """Nanoseconds that a call takes."""
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


def clock_cost() -> float:
    """Nanoseconds that timing one operation adds to it: the median of timing nothing."""
    nothing = Contender("nothing", "pass", dict)
    return statistics.median(nothing.singles(range(20_000)))


@dataclass(frozen=True)
class Plan:
    """How long to measure. `milliseconds` is what one contender gets per round, where it can repeat its pass."""

    rounds: int = 15
    chunk: int = 128
    milliseconds: float = 8.0


QUICK: Final = Plan(rounds=3, milliseconds=1.0)


@dataclass
class Comparison:
    """What was measured of each contender: a median per round, and single operations."""

    medians: dict[str, list[float]]
    singles: dict[str, list[float]]

    def ratios(self, label: str, to: str) -> list[float]:
        """Of each round, how many times as long an operation of `label` takes."""
        return [one / other for one, other in zip(self.medians[label], self.medians[to], strict=True)]

    def ratio(self, label: str, to: str) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios(label, to))

    def facts(self) -> dict[str, float]:
        """The median of the rounds' medians, in nanoseconds, by contender."""
        return {f"{label}, ns": round(statistics.median(times), 1) for label, times in self.medians.items()}

    def summaries(self) -> list[Summary]:
        """Percentiles of single operations, by contender."""
        return [summarise(label, values) for label, values in self.singles.items()]


Arguments = Callable[[int], Sequence[Any]]


@dataclass(frozen=True)
class Contest:
    """Contenders, ours first, and what they are asked: `arguments(n)` in pass n, by contender where they differ.

    Where `repeatable`, a pass may be repeated with the same arguments, and one goes untimed before the first
    round: what is measured is repetition. Otherwise each pass is made once.
    """

    contenders: Sequence[Contender]
    arguments: Arguments | Mapping[str, Arguments]
    repeatable: bool = True

    def asked(self, contender: Contender, turn: int) -> Sequence[Any]:
        """What a contender is asked in a pass."""
        arguments = self.arguments
        return (arguments[contender.label] if isinstance(arguments, Mapping) else arguments)(turn)


def compare(contest: Contest, plan: Plan, tick: Callable[[], None] = lambda: None) -> Comparison:
    """Let contenders take turns, two passes each in a round: one in batches, one timed operation by operation."""
    cost = clock_cost()
    repeats = {contender.label: _repeats(contest, contender, plan) for contender in contest.contenders}
    found = Comparison({label: [] for label in repeats}, {label: [] for label in repeats})
    for turn in range(plan.rounds):
        for contender in contest.contenders if turn % 2 else reversed(contest.contenders):
            chunks = chunked(contest.asked(contender, 2 * turn), plan.chunk)
            times = contender.batches(chunks, repeats[contender.label])
            found.medians[contender.label].append(statistics.median(times))
            alone = contender.singles(contest.asked(contender, 2 * turn + 1))
            found.singles[contender.label].extend(max(0.0, single - cost) for single in alone)
        tick()
    return found


def _repeats(contest: Contest, contender: Contender, plan: Plan) -> int:
    """How often a pass has to be repeated to take its share of a round."""
    if not contest.repeatable:
        return 1
    chunks = chunked(contest.asked(contender, 0), plan.chunk)
    contender.batches(chunks, 1)
    start = time.perf_counter_ns()
    contender.batches(chunks, 1)
    taken = max(1, time.perf_counter_ns() - start)
    return max(1, min(200, int(plan.milliseconds * 1e6 / taken)))


def chunked(arguments: Sequence[Any], size: int) -> list[list[tuple[Any, ...]]]:
    """Arguments in chunks of about `size`, each of groups of eight; a remainder of less than eight is left out."""
    groups = list(zip(*[iter(arguments)] * UNROLLED, strict=False))
    if not groups:
        raise ValueError(f"at least {UNROLLED} arguments are needed")
    step = max(1, size // UNROLLED)
    return [groups[at : at + step] for at in range(0, len(groups), step)]
