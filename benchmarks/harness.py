"""Timing: contenders take turns in each round, and are compared within the round.

A contender is a statement, as in `timeit`, so it is timed as a user writes it, attribute look-up included. One turn
of the loop has eight statements, so that the loop itself hardly counts. Garbage collection stays on. The figure of a
round is the median of many short batches. A ratio is taken in each round; the result is the median of these ratios.
Percentiles are of operations timed one by one; the cost of reading the clock is subtracted.
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


NANOSECONDS: Final = {"ns": 1.0, "µs": 1e3, "ms": 1e6, "s": 1e9}
"""How many a unit has."""


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
    """The smallest value that is at least as large as `share` (0 to 1) of the sorted values."""
    rank = -(-len(ordered) * share // 1)
    return ordered[max(0, min(len(ordered) - 1, int(rank) - 1))]


def summarise(label: str, values: Iterable[float], unit: str = "ns") -> Summary:
    """Percentiles of values in `unit`, a key of NANOSECONDS. Raises ValueError for another unit, and for no values."""
    if unit not in NANOSECONDS:
        raise ValueError(f"{unit!r} is no unit of a duration: use one of {', '.join(NANOSECONDS)}")
    ordered = sorted(values)
    if not ordered:
        raise ValueError(f"no values were measured for {label}")
    median, p90, p99, p999 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99, 0.999))
    return Summary(label, unit, len(ordered), median, p90, p99, p999, ordered[-1])


@dataclass
class Contender:
    """A statement to time. `{}` in it is the argument. `namespace` makes its variables before each pass, untimed."""

    label: str
    statement: str
    namespace: Callable[[], Namespace]
    _batch: Callable[..., None] = field(init=False, repr=False)
    _singles: Callable[..., None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._batch = _compiled(_BATCH, [self.statement.replace("{}", variable) for variable in _VARIABLES])
        self._singles = _compiled(_SINGLES, [self.statement.replace("{}", "a0")])

    def batches(
        self, chunks: Sequence[Sequence[tuple[Any, ...]]], repeats: int, names: Namespace | None = None
    ) -> list[float]:
        """Nanoseconds per operation, one value for each chunk. `names` None: new ones."""
        names = self.namespace() if names is None else names
        clock, run = time.perf_counter_ns, self._batch
        found = []
        for _ in range(repeats):
            for chunk in chunks:
                start = clock()
                run(chunk, names)
                found.append((clock() - start) / (len(chunk) * UNROLLED))
        return found

    def singles(self, arguments: Sequence[Any]) -> list[int]:
        """Nanoseconds of each operation, the cost of reading the clock included."""
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
_NEXT_LINE: Final = "\n        "  # not joined by semicolons, because a statement may be a `with` of one line


def _compiled(template: str, statements: list[str]) -> Callable[..., None]:
    """Make each name of a statement a local variable, as it would be in a worker's loop."""
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
    """How many nanoseconds one call takes."""
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


def clock_cost() -> float:
    """How many nanoseconds the clock adds to a timed operation: the median of timing nothing."""
    nothing = Contender("nothing", "pass", dict)
    return statistics.median(nothing.singles(range(20_000)))


@dataclass(frozen=True)
class Plan:
    """How long to measure. `milliseconds` is the time of one contender in a round, where passes can be repeated."""

    rounds: int = 15
    chunk: int = 128
    milliseconds: float = 8.0


QUICK: Final = Plan(rounds=3, milliseconds=1.0)


@dataclass
class Comparison:
    """The measurements of each contender: a median per round, and single operations."""

    medians: dict[str, list[float]]
    singles: dict[str, list[float]]

    def ratios(self, label: str, to: str) -> list[float]:
        """For each round: the time of an operation of `label`, divided by that of `to`."""
        return [one / other for one, other in zip(self.medians[label], self.medians[to], strict=True)]

    def ratio(self, label: str, to: str) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios(label, to))

    def facts(self) -> dict[str, float]:
        """By contender, the median over all rounds, in nanoseconds."""
        return {f"{label}, ns": round(statistics.median(times), 1) for label, times in self.medians.items()}

    def summaries(self) -> list[Summary]:
        """By contender, the percentiles of single operations."""
        return [summarise(label, values) for label, values in self.singles.items()]


Arguments = Callable[[int], Sequence[Any]]


@dataclass(frozen=True)
class Contest:
    """Contenders, the registry first, and their arguments: `arguments(n)` for pass n, by contender if they differ.

    If `repeatable`, a pass may be repeated with the same arguments, and an untimed pass comes before the first
    round, because repeated operations are measured. Otherwise each pass is made once.
    """

    contenders: Sequence[Contender]
    arguments: Arguments | Mapping[str, Arguments]
    repeatable: bool = True

    def asked(self, contender: Contender, turn: int) -> Sequence[Any]:
        """The arguments of one contender in one pass."""
        arguments = self.arguments
        return (arguments[contender.label] if isinstance(arguments, Mapping) else arguments)(turn)


def compare(contest: Contest, plan: Plan, tick: Callable[[], None] = lambda: None) -> Comparison:
    """Let contenders take turns. In a round each makes two passes: one in batches, one timed by single operations."""
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
    """How often to repeat a pass, so that it fills its part of a round."""
    if not contest.repeatable:
        return 1
    chunks = chunked(contest.asked(contender, 0), plan.chunk)
    contender.batches(chunks, 1)
    start = time.perf_counter_ns()
    contender.batches(chunks, 1)
    taken = max(1, time.perf_counter_ns() - start)
    return max(1, min(200, int(plan.milliseconds * 1e6 / taken)))


def chunked(arguments: Sequence[Any], size: int) -> list[list[tuple[Any, ...]]]:
    """Arguments in chunks of about `size`, made of groups of eight. Up to seven left over are dropped."""
    groups = list(zip(*[iter(arguments)] * UNROLLED, strict=False))
    if not groups:
        raise ValueError(f"at least {UNROLLED} arguments are needed")
    step = max(1, size // UNROLLED)
    return [groups[at : at + step] for at in range(0, len(groups), step)]
