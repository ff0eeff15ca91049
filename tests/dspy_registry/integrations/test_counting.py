"""Every call of a DSPy program is counted once, with what it used, whatever DSPy shows of it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError

from dspy_registry.integrations.dspy import RegistryCallback, module
from dspy_registry.integrations.lm_usage import tracked_tokens
from tests.support.dspy_program import PricedLM
from tests.support.dspy_program_costs import COST, TOKENS_IN, TOKENS_OUT
from tests.support.notes import Notes

pytestmark = [
    pytest.mark.dspy,
    pytest.mark.filterwarnings("ignore:The custom-engine complete_legacy:DeprecationWarning"),  # of the test's model
]
ONE = (TOKENS_IN, TOKENS_OUT)


@pytest.fixture
def notes() -> Iterator[Notes]:
    """What the callback reports while DSPy is set up for a test."""
    notes = Notes()
    with dspy.context(lm=PricedLM(), callbacks=[RegistryCallback(reporter=notes)]):  # type: ignore[arg-type]
        yield notes


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Grows with the warnings of this project."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    log, keep = logging.getLogger("dspy_registry"), Keep(logging.WARNING)
    log.addHandler(keep)
    yield found
    log.removeHandler(keep)


class Ask(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.ask(question=question)


class Guard(dspy.Module):  # type: ignore[misc]
    def forward(self, prediction: Any) -> Any:
        return prediction


class Around(dspy.Module):  # type: ignore[misc]
    def __init__(self, inner: Any, times: int = 1) -> None:
        super().__init__()
        self.inner = inner
        self.times = times

    def forward(self, **inputs: Any) -> Any:
        for _ in range(self.times):
            found = self.inner(**inputs)
        return found


class Memo(Ask):
    """Keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {}

    def forward(self, question: str) -> Any:
        if question not in self.kept:
            self.kept[question] = self.ask(question=question)
        return self.kept[question]


# Tokens


@pytest.mark.parametrize("track", [True, False])
def test_a_prediction_of_an_earlier_call_brings_no_tokens(notes: Notes, track: bool) -> None:
    with dspy.context(track_usage=track):
        earlier = dspy.Predict("question -> answer")(question="x")
        Around(Guard())(prediction=earlier)
        assert notes.tokens("Guard") == notes.tokens("Around") == (0, 0)
        memo = Memo()
        memo(question="y")
        Around(memo, times=10)(question="y")
    assert len(notes.of("Memo")) == 11
    assert notes.tokens("Memo") == ONE


def test_a_model_that_an_adapter_asks_while_parsing_counts(notes: Notes) -> None:
    with dspy.context(adapter=dspy.TwoStepAdapter(PricedLM())):
        Ask()(question="x")
    assert notes.tokens("Ask") == notes.tokens("Predict") == (2 * TOKENS_IN, 2 * TOKENS_OUT)
    assert [row.cost for row in notes.of("Ask")] == [2 * COST]


class OddLM(PricedLM):
    """Says that it used whatever it is told to say."""

    def __init__(self, usage: Any, cost: Any) -> None:
        super().__init__()
        self._odd = {"usage": usage, "cost": cost}

    def update_history(self, entry: dict[str, Any]) -> None:
        entry.update(self._odd)
        dspy.BaseLM.update_history(self, entry)


ODD = ["11", [11], math.nan, math.inf, -1, True, None, {"a": 1}, object(), 10**400]


@pytest.mark.parametrize("value", ODD, ids=[str(at) for at in range(len(ODD))])
def test_a_call_is_counted_whatever_its_usage_says(notes: Notes, value: Any) -> None:
    usage = {"prompt_tokens": value, "completion_tokens": 7, "input_tokens": value}
    for said in (usage, value):
        with dspy.context(lm=OddLM(said, value)):
            Ask()(question="x")
    assert [row.tokens for row in notes.of("Ask")] == [(0, 7), (0, 0)]
    assert [row.cost for row in notes.of("Ask")] == [None, None]
    prediction = dspy.Prediction(answer="x")
    prediction.set_lm_usage({"m": usage, "n": value})
    assert tracked_tokens(prediction) == (0, 7)


@pytest.mark.parametrize("settings", [{"max_history_size": 0}, {"disable_history": True, "track_usage": True}])
def test_tokens_are_known_without_the_history_of_a_model(notes: Notes, settings: dict[str, Any]) -> None:
    async def all_at_once() -> None:
        program = dspy.asyncify(Around(Ask(), times=2))
        await asyncio.gather(*(program(question=f"{at}") for at in range(8)))

    with dspy.context(**settings):
        Around(Ask(), times=3)(question="x")
        assert notes.tokens("Ask") == notes.tokens("Around") == (3 * TOKENS_IN, 3 * TOKENS_OUT)
        asyncio.run(all_at_once())
    assert notes.tokens("Ask") == (19 * TOKENS_IN, 19 * TOKENS_OUT)


def test_calls_without_history_and_tracking_are_counted_and_told_once(notes: Notes, told: list[str]) -> None:
    with dspy.context(disable_history=True):
        for _ in range(3):
            Ask()(question="x")
    assert len(notes.of("Ask")) == 3
    assert notes.tokens("Ask") == (0, 0)
    assert len([text for text in told if "disable_history" in text]) == 1


# What DSPy does not show


class Overrides(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.ask = Ask()

    def __call__(self, question: str) -> Any:
        return self._helper(question)

    async def acall(self, question: str) -> Any:
        return await self.ask.ask.acall(question=question)

    def _helper(self, question: str) -> Any:
        return self.ask(question=question)


@module()
class Shown(Overrides):
    def __call__(self, question: str) -> Any:
        return self._helper(question)

    async def acall(self, question: str) -> Any:
        return await self.ask.ask.acall(question=question)


@module()
class GoesOn(Ask):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def test_a_call_that_is_overridden_is_told_once(notes: Notes, told: list[str]) -> None:
    for _ in range(2):
        Overrides()(question="x")
        asyncio.run(Overrides().acall(question="x"))
    assert not notes.of("Overrides")
    assert len(notes.of("Predict")) == 4
    assert sorted("acall" in text for text in told if "test_counting.Overrides" in text) == [False, True]


def test_a_declared_class_is_counted_though_it_overrides_the_call(notes: Notes, told: list[str]) -> None:
    Shown()(question="x")
    asyncio.run(Shown().acall(question="x"))
    GoesOn()(question="x")
    assert [row.tokens for row in notes.of("Shown")] == [ONE, ONE]
    assert [row.tokens for row in notes.of("GoesOn")] == [ONE]
    assert told == []


class Fan(Ask):
    """Asks in plain threads."""

    def __init__(self, *, with_context: bool) -> None:
        super().__init__()
        self.with_context = with_context

    def forward(self, question: str) -> Any:
        settings = dict(dspy.settings.copy())

        def one(at: int) -> Any:
            with dspy.context(**settings):
                return self.ask(question=f"{question} {at}")

        with ThreadPoolExecutor(2) as pool:
            if self.with_context:
                answers = list(pool.map(lambda each: each[0].run(one, each[1]), self._contexts()))
            else:
                answers = list(pool.map(one, range(6)))
        return answers[0]

    def _contexts(self) -> list[tuple[contextvars.Context, int]]:
        return [(contextvars.copy_context(), at) for at in range(6)]


def test_plain_threads_inside_a_module_count_for_themselves_and_are_told_once(notes: Notes, told: list[str]) -> None:
    for _ in range(2):
        Fan(with_context=False)(question="x")
    assert notes.tokens("Fan") == (0, 0)
    assert notes.tokens("Predict") == (12 * TOKENS_IN, 12 * TOKENS_OUT)
    assert len([text for text in told if "Fan" in text and "thread" in text]) == 1


def test_threads_that_know_the_call_count_towards_it(notes: Notes, told: list[str]) -> None:
    Fan(with_context=True)(question="x")
    assert notes.tokens("Fan") == (6 * TOKENS_IN, 6 * TOKENS_OUT)
    assert told == []


# Outcomes


class RateLimitError(Exception):
    status_code = 429
    retry_after = 3.5


class Fails(dspy.Module):  # type: ignore[misc]
    def forward(self, error: BaseException) -> Any:
        raise error


def test_a_failure_is_reported_with_its_kind(notes: Notes) -> None:
    before = time.monotonic()
    errors = [RateLimitError(), TimeoutError(), ValueError("x"), asyncio.CancelledError(), ConnectionError()]
    for error in errors:
        with pytest.raises(type(error)):
            Fails()(error=error)
    Ask()(question="x")
    assert [row.error for row in notes.of("Fails")] == ["rate_limited", "timeout", "error", "cancelled", "unavailable"]
    assert [row.retry_after for row in notes.of("Fails")] == [3.5, None, None, None, None]
    assert not any(row.ok for row in notes.of("Fails"))
    assert [(row.ok, row.error, row.retry_after) for row in notes.of("Ask")] == [(True, None, None)]
    assert all(before <= (row.began or 0) <= time.monotonic() for row in notes.rows)


def test_an_answer_that_cannot_be_parsed_is_invalid_output(notes: Notes) -> None:
    with pytest.raises(AdapterParseError):
        dspy.Predict("question -> number: int")(question="x")
    assert [row.error for row in notes.of("Predict")] == ["invalid_output"]


# Names


def test_an_instance_may_say_its_name(notes: Notes) -> None:
    one, other, wrong = Ask(), Ask(), Ask()
    one.registry_name, other.registry_name, wrong.registry_name = "acme.Faq", "acme.Legal", "\n"
    for program in (one, other, wrong, dspy.Predict("a -> answer").deepcopy(), one.deepcopy()):
        program(question="x", a="x") if isinstance(program, dspy.Predict) else program(question="x")
    assert [row.names for row in notes.rows if "dspy" not in row.names[0]][:2] == [("acme.Faq",), ("acme.Legal",)]
    assert len(notes.of("acme.Faq")) == 2
    assert len(notes.of("test_counting.Ask")) == 1


@module("acme.Declared", category="qa", capabilities=["reasoning"], memory="high", estimated_duration=20)
class Declared(Ask):
    pass


class Inherits(Declared):
    pass


def test_a_declared_name_is_reported_first_and_not_inherited(notes: Notes) -> None:
    Declared()(question="x")
    Inherits()(question="x")
    declared, inherits = (row.names for row in notes.rows if "Predict" not in row.names[0])
    assert declared[0] == "acme.Declared"
    assert declared[-1].endswith("test_counting.Declared")
    assert inherits[-1].endswith("test_counting.Inherits")
    assert "acme.Declared" not in inherits


def test_a_class_is_counted_whatever_it_says_of_itself(notes: Notes) -> None:
    class Without(Ask):
        pass

    class Raises(Ask):
        @property
        def registry_name(self) -> str:
            raise RuntimeError("no name")

    class NotAText(Ask):
        pass

    del Without.__module__
    NotAText.__module__ = None  # type: ignore[assignment]
    for cls in (Without, NotAText, Raises):
        cls()(question="x")
    rows = [row for row in notes.rows if row.names[0] != "dspy.Predict"]
    assert all(row.names[-1].endswith(cls.__name__) for row, cls in zip(rows, (Without, NotAText, Raises), strict=True))
    assert [row.tokens for row in rows] == [ONE, ONE, ONE]


def test_an_input_that_cannot_be_measured_is_normal(notes: Notes) -> None:
    Guard()(prediction=object())
    Guard()(prediction=dspy.History(messages=[{"question": "x" * 60_000}]))
    assert [row.size for row in notes.of("Guard")] == [None, 60_000]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"memory": "huge"}, "memory"), ({"estimated_duration": -1}, "duration"), ({"capabilities": ["A B"]}, "capab")],
)
def test_a_declaration_that_is_wrong_is_refused_where_it_stands(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        module("acme.Wrong", **wrong)
    with pytest.raises(TypeError):
        module(Ask)  # type: ignore[arg-type]
