"""Recording on the request path: no value, thread or missing registry makes the caller suffer."""

from __future__ import annotations

import inspect
import math
import threading
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import InvalidArgumentError, Registry, UsageReporter
from dspy_registry.writer.client.recorded_call import Moment, checked, measured
from dspy_registry.writer.client.reporter import QUEUE_LENGTH
from tests.support import reporting
from tests.support.command import daemon
from tests.support.reporting import calls, lost
from tests.support.selection import each
from tests.support.usage_helpers import wait_until

reporter = reporting.reporter


@pytest.mark.parametrize(
    "arguments",
    [
        (None, 1.0),
        ([], 1.0),
        ((), 1.0),
        ("", 1.0),
        ("x" * 300, 1.0),
        ("\ud800", 1.0),
        ("a\0b", 1.0),
        pytest.param((object(), None), id="object"),
    ],
    ids=repr,
)
def test_a_call_without_a_name_is_lost_and_harms_no_other(
    seeded_registry: Path, reporter: UsageReporter, arguments: tuple[Any, Any]
) -> None:
    reporter.record(*arguments)
    reporter.record("dspy.Predict", 1.0)
    with daemon(seeded_registry):
        assert reporter.flush(30)
    assert calls(seeded_registry) == 1


def test_values_that_make_no_sense_count_as_nothing(seeded_registry: Path, reporter: UsageReporter) -> None:
    wrong: list[Any] = [math.nan, math.inf, -1, None, "many", [1], 10**400]
    for value in wrong:
        reporter.record("dspy.Predict", value, True, value, value, value, value)
    with daemon(seeded_registry), Registry(seeded_registry) as registry:
        assert reporter.flush(30)
        usage = registry.usage("dspy.Predict")
    assert (usage.calls, usage.tokens_in, usage.tokens_out, usage.cost_usd) == (len(wrong), 0, 0, 0.0)
    assert usage.overall.calls == 1


class Contrary(float):
    """A value of the program's own that raises as soon as anybody looks at it. numpy's arrays do so too."""

    def _raise(self, *_: object) -> Any:
        raise SystemExit("not with me")

    __bool__ = __float__ = __int__ = __abs__ = __lt__ = __gt__ = __le__ = __eq__ = _raise
    __hash__ = float.__hash__


class Ambiguous:
    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


@pytest.mark.parametrize("at", each(3, range(1, 7)))
@pytest.mark.parametrize("value", [Contrary(1.0), Ambiguous()], ids=["contrary", "ambiguous"])
def test_a_value_that_raises_ends_no_reports(
    seeded_registry: Path, reporter: UsageReporter, at: int, value: object
) -> None:
    arguments: list[Any] = ["dspy.Predict", 1.0, True, 1, 1, 1, 1.0]
    arguments[at] = value
    reporter.record("dspy.Predict", 1.0)
    reporter.record(*arguments)
    reporter.record("dspy.Predict", 1.0)
    with daemon(seeded_registry):
        wait_until(reporter.flush, "the daemon")
        assert reporter._thread is not None
        assert reporter._thread.is_alive()
        reporter.record("dspy.Predict", 1.0)
        wait_until(reporter.flush, "the daemon")
    assert calls(seeded_registry) in (3, 4)  # a value that nobody needs to look at harms not even its own call


def test_calls_beyond_the_queue_that_raise_are_lost(seeded_registry: Path, reporter: UsageReporter) -> None:
    reporter.record("dspy.Predict", 1.0)
    unhashable: Any = []
    ambiguous: Any = Ambiguous()
    with reporter._working:
        for _ in range(QUEUE_LENGTH):
            reporter.record("dspy.Predict", 1.0)
        while len(reporter._queue) < QUEUE_LENGTH:
            reporter.record("dspy.Predict", 1.0)
        reporter.record("dspy.Predict", 1.0, ambiguous)
        reporter.record(unhashable, 1.0)
    with daemon(seeded_registry):
        wait_until(reporter.flush, "the daemon")
    assert lost(seeded_registry) == 2


def test_a_round_that_fails_is_not_the_last(
    seeded_registry: Path, reporter: UsageReporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(reporter._outbox, "send", lambda *_: 1 / 0)
        reporter.record("dspy.Predict", 1.0)
        assert not reporter.flush(30)
        wait_until(lambda: "could not be sent" in caplog.text, "the log")
    with daemon(seeded_registry):
        wait_until(reporter.flush, "the daemon")
    assert calls(seeded_registry) == 1


@pytest.mark.parametrize("interval", [0, -1, math.nan, -math.inf, "1", None])
def test_an_interval_that_is_none_is_refused(seeded_registry: Path, interval: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="interval"):
        UsageReporter(seeded_registry, interval=interval)


def test_an_interval_may_be_endless(seeded_registry: Path) -> None:
    with daemon(seeded_registry), UsageReporter(seeded_registry, interval=math.inf) as reporter:
        reporter.record("dspy.Predict", 1.0)
        assert reporter.flush(30)
    assert calls(seeded_registry) == 1


def test_names_may_be_texts_of_another_type(seeded_registry: Path, reporter: UsageReporter) -> None:
    class Name(str):
        __slots__ = ()

    reporter.record(Name("dspy.Predict"), 1.0)
    reporter.record((Name("no.such"), Name("Predict")), 1.0)
    with daemon(seeded_registry):
        assert reporter.flush(30)
    assert calls(seeded_registry) == 2


def test_a_cost_that_is_none_is_no_price(seeded_registry: Path, reporter: UsageReporter) -> None:
    with daemon(seeded_registry), Registry(seeded_registry) as registry:
        for cost in (float("nan"), -1, float("inf"), "1", 0, 3.0):
            reporter.record("Predict", 1, cost_usd=cost)
        assert reporter.flush()
        usage = registry.usage("Predict")
    assert (usage.calls, usage.priced_calls, usage.cost_usd, usage.cost_usd_per_call) == (6, 2, 3.0, 1.5)


def test_threads_share_a_reporter(seeded_registry: Path, reporter: UsageReporter) -> None:
    def work() -> None:
        for _ in range(500):
            reporter.record("dspy.Predict", 1.0)

    with daemon(seeded_registry):
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(reporter.flush, "the daemon")
    assert calls(seeded_registry) == 4000


def test_a_registry_that_is_not_there_harms_nobody(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / ("x" * 200)):
        with UsageReporter(path) as reporter:
            reporter.record("dspy.Predict", 1.0)
            assert not reporter.flush(30)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_reporter_records_nothing(seeded_registry: Path) -> None:
    reporter = UsageReporter(seeded_registry)
    with daemon(seeded_registry):
        reporter.record("dspy.Predict", 1.0)
        assert reporter.close(30)
        reporter.record("dspy.Predict", 1.0)
        assert reporter.flush()
        assert reporter.close()
    assert calls(seeded_registry) == 1
    wait_until(lambda: "dspy-registry usage" not in {thread.name for thread in threading.enumerate()}, "its thread")


@pytest.mark.parametrize(
    "outcome",
    [{}, {"ok": False}, {"error": "timeout"}, {"error": "timeout", "limit": 90.0}, {"error": "caller"}, {"took": "?"}],
)
def test_who_asks_before_a_call_measures_calls_as_their_count_does(outcome: dict[str, Any]) -> None:
    told = {"took": 70.0, "ok": True, "error": None, "limit": None, **outcome}
    for characters, version in ((None, 0), (20_000, 3), ("?", -1)):
        before = ("a.B", told["took"], told["ok"], characters, 1, 2, None)
        call = (*before, told["error"], version, told["limit"], None, None)
        counted = checked(call, Moment(1_000, 0, 1.0))
        assert measured(call) == (counted.kind, counted.version, counted.size, counted.milliseconds)


def test_record_has_no_keyword_only_arguments() -> None:
    """Filling them in took as long as a quarter of a call."""
    kinds = {each.kind for each in inspect.signature(UsageReporter.record).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
