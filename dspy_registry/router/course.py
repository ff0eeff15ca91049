"""The course of a routed call: which module to try next, and when to wait. It does nothing itself, and takes no time.

`course` yields what is to be done and is sent what came of it. So one course serves threads, asyncio and tests. Steps
and answers are structs, which are made in a fifth of the time of a named tuple. They are final, so `type(step) is
Pause` is enough: it takes a quarter of the time of `isinstance`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, final

from msgspec import Struct
from msgspec.structs import replace

from dspy_registry.readers.route import Candidate, Route
from dspy_registry.registry_store.errors import (
    LimitReachedError,
    NoCandidateError,
    NoProgramError,
    ProgramRefusedError,
    RouteFailedError,
)
from dspy_registry.registry_store.outcome_kinds import CALLER, OK
from dspy_registry.router.attempt import Attempt, Result

FIRST_PAUSE: Final = 0.5
"""Seconds to wait when all candidates were tried, the first time; each further time twice as long."""
LONGEST_PAUSE: Final = 8.0
JITTER: Final = 0.2
ROUNDS: Final = 3
"""How often all candidates are tried when there is no deadline."""


@final
class Try(Struct, frozen=True):
    """Call this candidate, for at most `seconds`. `patience` is how many seconds to wait for a limit of calls.

    `must`: call it even if another process is probing it. `end`, in seconds on the clock of the course, is when the
    whole call must have ended; None: there is no deadline.
    """

    candidate: Candidate
    seconds: float
    patience: float = 0.0
    must: bool = False
    end: float | None = None

    def begun(self, now: float) -> Try | None:
        """The attempt as it begins at `now`: what it waited for took from its time. None: no time is left."""
        if self.end is None:
            return self
        left = self.end - now
        return replace(self, seconds=min(self.seconds, left)) if left > 0 else None


@final
class Pause(Struct, frozen=True):
    """Wait."""

    seconds: float


@final
class Ended(Struct, frozen=True):
    """An attempt ended."""

    attempt: Attempt
    value: Any = None


@final
class Refused(Struct, frozen=True):
    """No attempt was made. `error`: the limit that was reached, or why this process has no such program.

    None: another process is probing the module, or what the attempt waited for, a thread too, took all the time.
    """

    error: LimitReachedError | ProgramRefusedError | NoProgramError | None


Step = Try | Pause
Answer = Ended | Refused | None
Course = Generator[Step, Answer, Result]


class Span(Struct, frozen=True):
    """When to stop: `deadline` on `clock`, in seconds; None: after `rounds` rounds."""

    clock: Callable[[], float]
    deadline: float | None
    rounds: int = ROUNDS

    @property
    def left(self) -> float | None:
        """Seconds left; None: there is no deadline."""
        return None if self.deadline is None else self.deadline - self.clock()


def course(ask: Callable[[float | None], Route], span: Span, chance: Callable[[], float]) -> Course:
    """A call. `ask` gives the route for the milliseconds left. `chance` gives a number from 0 to below 1.

    Returns the result. Raises what an attempt raised if its kind is `caller` or it was cancelled, NoCandidateError if
    there was nothing to try, LimitReachedError if no limit let an attempt begin, RouteFailedError if none succeeded.
    """
    attempts: list[Attempt] = []
    number, deadline = 0, span.deadline
    while True:
        refused: list[tuple[Try, Refused]] = []
        began = len(attempts)
        for candidate in _ranked(ask, span, attempts):
            seconds = candidate.recommendation.timeout_seconds
            step = Try(candidate, seconds) if deadline is None else _step(candidate, seconds, deadline, span.clock())
            if step is None:
                continue
            answer = yield step
            if type(answer) is Ended:
                result = _counted(answer, attempts)
                if result is not None:
                    return result
            elif answer is not None:
                refused.append((step, answer))
        if refused and len(attempts) == began:  # none could begin
            result = yield from _tried_with_patience(refused, span, attempts)
            if result is not None:
                return result
        number += 1
        yield Pause(_pause(number, span, chance(), attempts))


def _ranked(ask: Callable[[float | None], Route], span: Span, attempts: Sequence[Attempt]) -> Sequence[Candidate]:
    """What to try in this round, in order. Raises NoCandidateError, or RouteFailedError after the first attempt."""
    left = None if span.deadline is None else span.left
    try:
        ranked = ask(None if left is None else max(0.0, left * 1000)).alternatives
    except NoCandidateError:
        if attempts:
            raise _failed("nothing else may be called in the time left", attempts) from attempts[-1].error
        raise
    return in_order(ranked, span.left) if ranked[-1].is_probe else ranked


def _pause(number: int, span: Span, chance: float, attempts: Sequence[Attempt]) -> float:
    """Seconds to wait after this many rounds. Raises RouteFailedError if no further round may follow."""
    pause = backoff(number, chance)
    if span.deadline is None and number >= span.rounds:
        raise _failed(f"all candidates were tried {number} times", attempts) from _last_error(attempts)
    if span.left is not None and span.left <= pause:
        raise _failed("the deadline is near", attempts) from _last_error(attempts)
    return pause


def backoff(number: int, chance: float) -> float:
    """Seconds to wait after this many rounds: 0.5, 1, 2, 4, 8, 8, …, by chance up to a fifth more or less."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(number - 1, 16)) * (1 - JITTER + 2 * JITTER * chance)


def _tried_with_patience(
    refused: Sequence[tuple[Try, Refused]], span: Span, attempts: list[Attempt]
) -> Generator[Step, Answer, Result | None]:
    """One of those that could not begin once more, with patience."""
    answer = yield _last_resort(refused, span)
    if isinstance(answer, Refused) and answer.error is not None:
        raise answer.error
    return _counted(answer, attempts) if isinstance(answer, Ended) else None


def in_order(ranked: Sequence[Candidate], left: float | None) -> Sequence[Candidate]:
    """Best first, but half-open ones before all others, if they leave enough of the `left` seconds to the best.

    Without probes a circuit would never close. At most one call of the host is a probe of a module at a time.
    """
    if not ranked[-1].is_probe or ranked[0].is_probe:  # the usual case: half-open ones are ranked last
        return ranked
    needed = ranked[0].expected_ms / 1000
    first = [
        each
        for each in ranked
        if each.is_probe and (left is None or each.recommendation.timeout_seconds + needed <= left)
    ]
    return (*first, *(each for each in ranked if each not in first))


def _step(candidate: Candidate, seconds: float, deadline: float, now: float) -> Try | None:
    """Its recommended limit, or what is left; None: less is left than it is expected to take."""
    left = deadline - now
    if left <= 0 or left * 1000 < candidate.expected_ms:
        return None
    return Try(candidate, min(seconds, left), end=deadline)


def _last_resort(refused: Sequence[tuple[Try, Refused]], span: Span) -> Try:
    """The best candidate that is at its limit, for which one can wait; else the best one, although it is probed."""
    limited = [step for step, refusal in refused if isinstance(refusal.error, LimitReachedError)]
    if not limited:
        probed = (step for step, refusal in refused if refusal.error is None)
        return replace(next(probed, refused[0][0]), must=True)
    step = limited[0]
    left = step.seconds if span.left is None else span.left
    return replace(step, patience=max(0.0, left - step.candidate.expected_ms / 1000))


def _counted(ended: Ended, attempts: list[Attempt]) -> Result | None:
    """Add the attempt. Returns the result if it succeeded. Raises its error if another attempt could not do better."""
    attempt = ended.attempt
    attempts.append(attempt)
    kind, error = attempt.kind, attempt.error
    if error is not None and (kind == CALLER or not isinstance(error, Exception)):
        raise error
    if kind != OK:
        return None
    return tuple.__new__(Result, (ended.value, attempt.name, attempt.version, tuple(attempts)))


def _failed(why: str, attempts: Sequence[Attempt]) -> RouteFailedError:
    tried = "; ".join(
        f"{each.name} {each.kind} after {each.duration_ms:.0f} ms" + (f" ({each.error!r})" if each.error else "")
        for each in attempts
    )
    return RouteFailedError(f"no attempt succeeded, and {why}: {tried or 'none could begin'}.", attempts)


def _last_error(attempts: Sequence[Attempt]) -> BaseException | None:
    return attempts[-1].error if attempts else None
