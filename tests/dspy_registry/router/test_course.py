"""The course of a routed call, without calls: a clock that the test moves, and attempts that end as it says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dspy_registry import NoCandidateError, RouteFailedError
from dspy_registry.registry_store.errors import LimitReachedError
from dspy_registry.router.attempt import Attempt, Result
from dspy_registry.router.course import Course, Ended, Pause, Refused, Span, Try, backoff, course, in_order

FULL = LimitReachedError("module:a", 1, [])


class Play:
    """A course with a clock. Each attempt takes `takes` seconds."""

    def __init__(self, names: str = "ab", deadline: float | None = None, rounds: int = 3, takes: float = 1.0) -> None:
        self.now = 0.0
        self.takes = takes
        self.asked: list[float | None] = []
        candidates = [candidate(name) for name in names]

        def ask(left: float | None) -> Any:
            self.asked.append(left)
            if not candidates:
                raise NoCandidateError()
            return SimpleNamespace(alternatives=candidates)

        self.steps: Course = course(ask, Span(lambda: self.now, deadline, rounds), lambda: 0.5)
        self.said: list[str] = []

    def run(self, *outcomes: Any) -> Result:
        """Outcomes are kinds, exceptions, or refusals, one for each step that is a try."""
        ahead = list(outcomes)
        answer: Any = None
        while True:
            try:
                step = self.steps.send(answer)
            except StopIteration as stop:
                assert not ahead
                return stop.value  # type: ignore[no-any-return]
            answer = self.pause(step) if isinstance(step, Pause) else self.tried(step, ahead.pop(0))

    def pause(self, step: Pause) -> None:
        self.said.append(f"pause {step.seconds:g}")
        self.now += step.seconds

    def tried(self, step: Try, outcome: Any) -> Any:
        patience = f" patience {step.patience:g}" if step.patience else ""
        self.said.append(f"{step.candidate.name} {step.seconds:g}{patience}" + (" must" if step.must else ""))
        if isinstance(outcome, Refused):
            return outcome
        self.now += min(self.takes, step.seconds)
        kind, error = (outcome, RuntimeError(outcome)) if isinstance(outcome, str) else ("cancelled", outcome)
        attempt = Attempt(step.candidate.name, 1, kind, 1000.0, step.seconds * 1000, None if kind == "ok" else error)
        return Ended(attempt, f"value of {step.candidate.name}")


def candidate(name: str) -> Any:
    return SimpleNamespace(
        name=name, version=1, expected_ms=500.0, recommendation=SimpleNamespace(timeout_seconds=2.0), is_probe=False
    )


def test_the_best_candidate_is_called_and_its_value_returned() -> None:
    play = Play()
    result = play.run("ok")
    assert (result.value, result.name, len(result.attempts)) == ("value of a", "a", 1)
    assert play.said == ["a 2"]


def test_a_failed_attempt_goes_to_the_next_candidate_at_once() -> None:
    play = Play("abc")
    result = play.run("error", "timeout", "ok")
    assert [attempt.kind for attempt in result.attempts] == ["error", "timeout", "ok"]
    assert play.said == ["a 2", "b 2", "c 2"]


def test_when_all_were_tried_it_waits_and_begins_again() -> None:
    play = Play()
    play.run("error", "error", "error", "error", "ok")
    assert play.said == ["a 2", "b 2", "pause 0.5", "a 2", "b 2", "pause 1", "a 2"]


def test_without_a_deadline_it_ends_after_some_rounds() -> None:
    play = Play("a", rounds=2)
    with pytest.raises(RouteFailedError) as caught:
        play.run("error", "unavailable")
    assert [attempt.kind for attempt in caught.value.attempts] == ["error", "unavailable"]
    assert caught.value.__cause__ is caught.value.attempts[-1].error  # type: ignore[attr-defined]


def test_one_deadline_holds_for_all() -> None:
    play = Play("abc", deadline=2.75)
    with pytest.raises(RouteFailedError):
        play.run("error", "error", "error")
    assert play.said == ["a 2", "b 1.75", "c 0.75"]


def test_a_candidate_that_would_take_longer_than_is_left_is_not_tried() -> None:
    play = Play("ab", deadline=1.4)
    with pytest.raises(RouteFailedError):
        play.run("error")
    assert play.said == ["a 1.4"]


def test_routes_are_asked_for_the_time_left() -> None:
    play = Play("a", deadline=4.0)
    play.run("error", "ok")
    assert play.asked == [4000.0, 2500.0]


@pytest.mark.parametrize("kind", ["caller"])
def test_a_wrong_request_is_never_repeated(kind: str) -> None:
    play = Play()
    with pytest.raises(RuntimeError, match=kind):
        play.run(kind)


def test_an_interrupt_is_never_repeated() -> None:
    play = Play()
    with pytest.raises(KeyboardInterrupt):
        play.run(KeyboardInterrupt())
    assert play.said == ["a 2"]


def test_a_candidate_at_its_limit_is_passed_over() -> None:
    play = Play()
    assert play.run(Refused(FULL), "ok").name == "b"


def test_when_all_are_at_their_limits_it_waits_for_the_best() -> None:
    play = Play(deadline=5.0)
    assert play.run(Refused(FULL), Refused(FULL), "ok").name == "a"
    assert play.said == ["a 2", "b 2", "a 2 patience 4.5"]
    play = Play()
    with pytest.raises(LimitReachedError):
        play.run(Refused(FULL), Refused(FULL), Refused(FULL))


def test_when_others_probe_all_that_is_left_it_calls_the_best_all_the_same() -> None:
    play = Play()
    assert play.run(Refused(None), Refused(None), "ok").name == "a"
    assert play.said == ["a 2", "b 2", "a 2 must"]


def test_a_probe_comes_first_if_it_leaves_the_best_its_time() -> None:
    best, probe = candidate("a"), candidate("p")
    probe.is_probe = True
    assert [each.name for each in in_order((best, probe), None)] == ["p", "a"]
    assert [each.name for each in in_order((best, probe), 2.5)] == ["p", "a"]
    assert [each.name for each in in_order((best, probe), 2.4)] == ["a", "p"]
    assert [each.name for each in in_order((probe,), 0.1)] == ["p"]


def test_nothing_to_try_is_told_as_the_route_tells_it() -> None:
    with pytest.raises(NoCandidateError):
        Play("").run()


def test_pauses_double_up_to_a_bound_and_differ_by_chance() -> None:
    assert [backoff(number, 0.5) for number in range(1, 8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert (backoff(1, 0.0), backoff(10_000, 1.0)) == (0.4, pytest.approx(9.6))
