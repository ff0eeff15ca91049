"""What `flush` and `close` return, whatever the reporter's own threads do at that moment."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dspy_registry import UsageReporter
from dspy_registry.writer.client.rounds import Rounds
from tests.support import reporting
from tests.support.command import daemon
from tests.support.reporting import SELDOM, calls, worker
from tests.support.usage_helpers import wait_until

reporter = reporting.reporter


class Slow(float):
    """A value. Who reads it first waits until it is let go: a round of the reporter lasts as long."""

    def __init__(self, _: float) -> None:
        self.is_read, self.go = threading.Event(), threading.Event()

    def __abs__(self) -> float:
        self.is_read.set()
        self.go.wait(60)
        return super().__abs__()


def _before_it_looks(then: Callable[[], None]) -> Callable[..., Any]:
    """A trace function: `then` runs in the thread of a `flush` that is answered and has not looked at the answer."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is threading.Condition.__exit__.__code__ and event == "return":
            sys.settrace(None)
            then()
        return trace

    def waiting(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is threading.Condition.wait_for.__code__ and event == "return":
            sys.settrace(trace)
        return waiting

    return waiting


def test_a_round_that_begins_takes_nothing_from_the_answer_of_the_one_before(
    seeded_registry: Path, reporter: UsageReporter
) -> None:
    """A thread that sends often had begun the next round before the flushing thread had its turn."""
    slow = Slow(1.0)

    def begin_another() -> None:
        reporter.record("dspy.Predict", 1.0, tokens_in=slow)
        reporter._wake.ring()
        assert slow.is_read.wait(60)

    with daemon(seeded_registry):
        reporter.record("dspy.Predict", 1.0)
        before = sys.gettrace()
        sys.settrace(_before_it_looks(begin_another))
        try:
            assert reporter.flush(30)
        finally:
            sys.settrace(before)
            slow.go.set()
        assert slow.is_read.is_set()
        assert reporter.flush(30)


def test_flush_does_itself_what_a_thread_at_its_end_leaves(seeded_registry: Path) -> None:
    reporter = UsageReporter(seeded_registry, interval=SELDOM)
    slow = Slow(1.0)
    with daemon(seeded_registry), ThreadPoolExecutor() as others:
        reporter.record("dspy.Predict", 1.0, tokens_in=slow)
        assert not reporter.close(0.01)  # the thread's last round has begun
        assert slow.is_read.wait(60)
        flushed = others.submit(reporter.flush, 30)
        wait_until(lambda: reporter._rounds.asked == 2, "the flush")
        slow.go.set()
        assert flushed.result()
    assert calls(seeded_registry) == 1


def test_all_reporters_are_asked_before_any_is_waited_for(seeded_registry: Path) -> None:
    """At the end of a process they share one second."""
    code = f"""
        import threading
        from dspy_registry import Registry
        from dspy_registry.writer.client.reporter import flush_all

        class Slow(float):
            def __abs__(self):
                with Registry(path) as registry:
                    while not registry.usage("dspy.ReAct").calls:
                        go.wait(0.01)
                return super().__abs__()

        go = threading.Event()
        first, second = (UsageReporter(path, interval={SELDOM}) for _ in range(2))
        first.record("dspy.Predict", 1.0, tokens_in=Slow(1.0))
        second.record("dspy.ReAct", 1.0)
        assert flush_all(30)
    """
    with daemon(seeded_registry):
        done = worker(code, seeded_registry)
        assert done.returncode == 0, done.stderr
    assert calls(seeded_registry) == 1


def test_flush_waits_as_long_as_it_is_told_for_a_daemon_that_is_slow(
    seeded_registry: Path, reporter: UsageReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with daemon(seeded_registry) as process, ThreadPoolExecutor() as others:
        process.send_signal(signal.SIGSTOP)
        with monkeypatch.context() as patch:  # so that the test need not wait
            patch.setattr("dspy_registry.writer.client.reporter._ANSWER_TIMEOUT", 0.1)
            reporter.record("dspy.Predict", 1.0)
            flushed = others.submit(reporter.flush, 60)
            wait_until(lambda: reporter._rounds.asked > 1, "a second attempt")
        process.send_signal(signal.SIGCONT)
        assert flushed.result()
    assert calls(seeded_registry) == 1


def test_close_leaves_the_connection_to_a_thread_that_uses_it(
    seeded_registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "dspy_registry")
    reporter = UsageReporter(seeded_registry, interval=SELDOM)
    with daemon(seeded_registry) as process:
        reporter.record("dspy.Predict", 1.0)
        assert reporter.flush(30)
        process.send_signal(signal.SIGSTOP)
        reporter.record("dspy.Predict", 1.0)
        assert not reporter.close(0.1)
        process.send_signal(signal.SIGCONT)
        assert reporter.flush(30)
    assert calls(seeded_registry) == 2
    assert "was lost" not in caplog.text


def test_closed_and_flushed_in_a_forked_child(seeded_registry: Path) -> None:
    code = """
        import os
        closed = UsageReporter(path)
        closed.record("dspy.Predict", 1.0)
        assert closed.close(30)
        reporter = UsageReporter(path)
        reporter.record("dspy.Predict", 1.0)
        child = os.fork()
        if child == 0:
            good = closed.flush(30) and closed.close() and reporter.close(30) and reporter.close() and reporter.flush()
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert reporter.close(30)
    """
    with daemon(seeded_registry):
        done = worker(code, seeded_registry)
        assert done.returncode == 0, done.stderr
    assert calls(seeded_registry) == 2


def test_an_interrupt_at_the_end_of_a_round_leaves_nothing_taken(
    seeded_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may have no further thread, so each flush makes its round itself."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is Rounds.end.__code__:
            sys.setprofile(None)
            raise KeyboardInterrupt

    with UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            reporter.record("dspy.Predict", 1.0)
        sys.setprofile(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                reporter.flush(30)
        finally:
            sys.setprofile(None)
        with daemon(seeded_registry):
            assert reporter.flush(30)
    assert calls(seeded_registry) == 1
