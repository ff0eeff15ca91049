"""The reporter beside real daemons: what is recorded arrives once, whatever becomes of the daemon."""

from __future__ import annotations

import signal
import threading
import tracemalloc
from pathlib import Path

import pytest

from dspy_registry import Registry, UsageReporter
from dspy_registry.writer.client.outbox import NO_REGISTRY
from dspy_registry.writer.client.pending_calls import NAMES_KEPT
from dspy_registry.writer.client.reporter import QUEUE_LENGTH
from tests.support import reporting
from tests.support.command import daemon
from tests.support.reporting import calls, lost, worker
from tests.support.usage_helpers import wait_until

reporter = reporting.reporter


def test_what_is_delivered_can_be_read_at_once(seeded_registry: Path, reporter: UsageReporter) -> None:
    with daemon(seeded_registry), Registry(seeded_registry) as registry:
        for number in range(1, 6):
            reporter.record("Predict", 12.5, input_chars=500, tokens_in=3, tokens_out=2, cost_usd=0.5)
            reporter.record("ReAct", 1.0, ok=False)
            assert reporter.flush(30)
            usage = registry.usage("dspy.Predict")
            assert (usage.calls, usage.tokens_in, usage.tokens_out) == (number, 3 * number, 2 * number)
            assert usage.cost_usd_per_call == 0.5
            assert registry.usage("dspy.ReAct").error_rate == 1.0


def test_calls_are_sent_without_being_asked_for(seeded_registry: Path) -> None:
    with daemon(seeded_registry), UsageReporter(seeded_registry, interval=0.05) as reporter:
        reporter.record("dspy.Predict", 1.0)
        wait_until(lambda: calls(seeded_registry) == 1, "the first call")
        reporter.record("dspy.Predict", 1.0)
        wait_until(lambda: calls(seeded_registry) == 2, "the second call")


def test_the_status_tells_what_was_taken_in(seeded_registry: Path, reporter: UsageReporter) -> None:
    from dspy_registry import WriterClient

    with daemon(seeded_registry), WriterClient(seeded_registry) as client:
        reporter.record("dspy.Predict", 1.0)
        assert reporter.flush(30)
        assert client.status().sections["usage"] == {"batches": 1, "merges": 1}


@pytest.mark.parametrize("step", ["__init__", "start"])
def test_a_first_call_that_was_interrupted_leaves_a_reporter_that_works(
    seeded_registry: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with daemon(seeded_registry), UsageReporter(seeded_registry, interval=0.05) as reporter:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                reporter.record("dspy.Predict", 1.0)
        reporter.record("dspy.Predict", 1.0)
        wait_until(lambda: calls(seeded_registry) == 2, "both calls")


# The daemon away


def test_calls_wait_for_a_daemon_that_is_away(seeded_registry: Path, reporter: UsageReporter) -> None:
    for _ in range(3):
        reporter.record("dspy.Predict", 1.0)
        assert not reporter.flush(30)
    assert calls(seeded_registry) == 0
    with daemon(seeded_registry):
        wait_until(reporter.flush, "the daemon")
    assert calls(seeded_registry) == 3


def test_a_folder_without_a_registry_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A reporter of a wrong folder would lose all in silence."""
    with UsageReporter(tmp_path / "wrong", interval=0.05) as reporter:
        for _ in range(2):
            reporter.record("dspy.Predict", 1.0)
            assert not reporter.flush(30)
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(tmp_path / "wrong") in told
    assert NO_REGISTRY in told


def test_a_daemon_that_is_away_is_no_reason_to_warn(seeded_registry: Path, caplog: pytest.LogCaptureFixture) -> None:
    with UsageReporter(seeded_registry, interval=0.05) as reporter:
        reporter.record("dspy.Predict", 1.0)
        assert not reporter.flush(30)
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_one_round_sends_what_waited_and_what_came_since(seeded_registry: Path, reporter: UsageReporter) -> None:
    reporter.record("dspy.Predict", 1.0)
    assert not reporter.flush(30)
    for _ in range(10):
        reporter.record("dspy.Predict", 1.0)
    with daemon(seeded_registry):
        assert reporter.flush(30)
        assert calls(seeded_registry) == 11


def test_calls_arrive_once_though_daemons_are_killed(seeded_registry: Path) -> None:
    recorded = 0
    with UsageReporter(seeded_registry, interval=0.01) as reporter:
        for _ in range(4):
            with daemon(seeded_registry) as process:
                for _ in range(2000):
                    reporter.record("dspy.Predict", 1.0)
                    recorded += 1
                wait_until(lambda: calls(seeded_registry) > 0, "a merge")
                reporter.record("dspy.Predict", 1.0)
                recorded += 1
                process.kill()
                process.wait()
        with daemon(seeded_registry):
            wait_until(reporter.flush, "the last daemon")
    assert calls(seeded_registry) == recorded


@pytest.mark.parametrize("point", ["before_commit", "before_even_word", "before_acknowledgement"])
def test_a_daemon_killed_while_it_merges_counts_once(
    seeded_registry: Path, reporter: UsageReporter, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPY_REGISTRY_FAILPOINTS", f"{point}=kill")
    with daemon(seeded_registry) as process:
        monkeypatch.delenv("DSPY_REGISTRY_FAILPOINTS")
        reporter.record("dspy.Predict", 1.0)
        assert not reporter.flush(30)
        assert process.wait(30) == -signal.SIGKILL
    with daemon(seeded_registry):
        wait_until(reporter.flush, "the next daemon")
    assert calls(seeded_registry) == 1


def test_a_daemon_that_hangs_holds_up_nobody(seeded_registry: Path, reporter: UsageReporter) -> None:
    with daemon(seeded_registry) as process:
        process.send_signal(signal.SIGSTOP)
        reporter.record("dspy.Predict", 1.0)
        assert not reporter.flush(0.1)
        done = worker("reporter = UsageReporter(path); reporter.record('dspy.Predict', 1.0)", seeded_registry)
        assert (done.returncode, done.stderr) == (0, "")
        process.send_signal(signal.SIGCONT)
        wait_until(reporter.flush, "the daemon")
        assert calls(seeded_registry) >= 1


@pytest.mark.full
def test_memory_is_bounded_while_the_daemon_is_away(seeded_registry: Path, reporter: UsageReporter) -> None:
    tracemalloc.start()
    try:
        for at in range(4 * QUEUE_LENGTH):
            reporter.record(f"stray.N{at % 5000}", at % 977 + 0.5)
        reporter.flush(30)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 64 * 1024 * 1024
    with daemon(seeded_registry):
        wait_until(reporter.flush, "the daemon")
    with Registry(seeded_registry) as registry:
        usages = registry.usages()
    assert len(usages) <= 2 * NAMES_KEPT
    assert sum(usage.calls for usage in usages) + lost(seeded_registry) == 4 * QUEUE_LENGTH


def test_calls_beyond_the_queue_are_still_counted(seeded_registry: Path, reporter: UsageReporter) -> None:
    reporter.record("dspy.Predict", 1.0)
    with reporter._working:  # the thread waits, as if it had no time
        for at in range(QUEUE_LENGTH + 500):
            reporter.record("dspy.Predict", 1.0, at % 2 == 0)
        assert len(reporter._queue) <= QUEUE_LENGTH
    with daemon(seeded_registry), Registry(seeded_registry) as registry:
        wait_until(reporter.flush, "the daemon")
        usage = registry.usage("dspy.Predict")
    assert (usage.calls, usage.errors) == (QUEUE_LENGTH + 501, (QUEUE_LENGTH + 500) // 2)


def test_a_queue_that_was_full_takes_calls_again(seeded_registry: Path, reporter: UsageReporter) -> None:
    reporter.record("dspy.Predict", 1.0, tokens_in=1)
    for _ in range(3):
        with reporter._working:
            for _ in range(2 * QUEUE_LENGTH):
                reporter.record("dspy.Predict", 1.0, tokens_in=1)
            assert len(reporter._told) == QUEUE_LENGTH
        reporter.flush(30)  # there is no daemon: the calls are aggregated
        assert len(reporter._told) == 0
    with daemon(seeded_registry), Registry(seeded_registry) as registry:
        wait_until(reporter.flush, "the daemon")
        usage = registry.usage("dspy.Predict")
    assert usage.calls == 6 * QUEUE_LENGTH + 1
    assert 3 * QUEUE_LENGTH <= usage.tokens_in <= usage.calls, "the values of those that were on the queue"


def test_calls_after_the_end_are_not_kept(seeded_registry: Path) -> None:
    with UsageReporter(seeded_registry) as reporter:
        reporter.record("dspy.Predict", 1.0)
    for _ in range(3):
        reporter.record("dspy.Predict", 1.0)
    assert len(reporter._told) <= 1, "the first call, if no daemon took it"
    assert not reporter._overflow


def test_names_beyond_the_queue_are_bounded(seeded_registry: Path, reporter: UsageReporter) -> None:
    reporter.record("dspy.Predict", 1.0)
    with reporter._working:
        for at in range(QUEUE_LENGTH + 5000):
            reporter.record("dspy.Predict" if at < QUEUE_LENGTH else f"stray.{at}", 1.0)
        assert len(reporter._overflow) <= NAMES_KEPT + 1
        assert not reporter._overflow_failed
    with daemon(seeded_registry), Registry(seeded_registry) as registry:
        wait_until(reporter.flush, "the daemon")
        kept = sum(usage.calls for usage in registry.usages())
    assert kept + lost(seeded_registry) == QUEUE_LENGTH + 5001
