"""The reporter beside real daemons: what is recorded arrives once, and the process that records it never suffers."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import daemon
from usage_helpers import wait_until

from readers import Registry
from registry_store.errors import InvalidArgumentError
from registry_store.usage import calls_lost
from writer import RegistryWriter
from writer.usage import QUEUE_LENGTH, UsageReporter
from writer.usage.pending import NAMES_KEPT

SELDOM = 3600.0
"""An interval after which nothing is sent unless it is asked for."""


@pytest.fixture
def reporter(seeded_registry: Path) -> Iterator[UsageReporter]:
    with UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        yield reporter


def calls(path: Path, name: str = "dspy.Predict") -> int:
    with Registry(path) as registry:
        return registry.usage(name).calls


def lost(path: Path) -> int:
    with RegistryWriter(path) as writer, writer.store.environment.reading() as txn:
        return calls_lost(txn, writer.store.environment.dbs)


def worker(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A process of its own, with `path` being its first argument."""
    head = "import sys\nfrom writer.usage import UsageReporter\npath = sys.argv[1]\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=90,
    )


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
    from writer import WriterClient

    with daemon(seeded_registry), WriterClient(seeded_registry) as client:
        reporter.record("dspy.Predict", 1.0)
        assert reporter.flush(30)
        assert client.status().sections["usage"] == {"batches": 1, "merges": 1}


# The daemon away


def test_calls_wait_for_a_daemon_that_is_away(seeded_registry: Path, reporter: UsageReporter) -> None:
    for _ in range(3):
        reporter.record("dspy.Predict", 1.0)
        assert not reporter.flush(30)
    assert calls(seeded_registry) == 0
    with daemon(seeded_registry):
        wait_until(reporter.flush, "the daemon")
    assert calls(seeded_registry) == 3


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


def test_names_beyond_the_queue_are_bounded(seeded_registry: Path, reporter: UsageReporter) -> None:
    reporter.record("dspy.Predict", 1.0)
    with reporter._working:
        for at in range(QUEUE_LENGTH + 5000):
            reporter.record("dspy.Predict" if at < QUEUE_LENGTH else f"stray.{at}", 1.0)
        assert len(reporter._overflow) <= NAMES_KEPT + 1
        assert not reporter._overflow_errors
    with daemon(seeded_registry), Registry(seeded_registry) as registry:
        wait_until(reporter.flush, "the daemon")
        kept = sum(usage.calls for usage in registry.usages())
    assert kept + lost(seeded_registry) == QUEUE_LENGTH + 5001


# The request path


@pytest.mark.parametrize(
    "arguments",
    [(None, 1.0), ([], 1.0), ((), 1.0), ("", 1.0), ("x" * 300, 1.0), ("\ud800", 1.0), ("a\0b", 1.0), (object(), None)],
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


@pytest.mark.parametrize("at", range(1, 7))
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
        patched.setattr(reporter._link, "send", lambda *_: 1 / 0)
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


# Processes


def test_a_process_that_ends_sends_what_is_left(seeded_registry: Path) -> None:
    with daemon(seeded_registry):
        for ending in ("pass", "sys.exit(0)", "raise SystemExit"):
            code = f"UsageReporter(path).record('dspy.Predict', 1.0)\n{ending}"
            done = worker(code, seeded_registry)
            assert (done.returncode, done.stderr) == (0, "")
        assert worker("UsageReporter(path).record('dspy.Predict', 1.0); 1 / 0", seeded_registry).returncode == 1
    assert calls(seeded_registry) == 4


def test_a_process_ends_though_there_is_no_daemon(seeded_registry: Path) -> None:
    done = worker("UsageReporter(path).record('dspy.Predict', 1.0)", seeded_registry)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_send_what_is_left(seeded_registry: Path, tmp_path: Path, method: str) -> None:
    program = tmp_path / "pool.py"
    program.write_text(
        textwrap.dedent(
            """
            import multiprocessing, sys
            from writer.usage import UsageReporter

            reporter = UsageReporter(sys.argv[1])

            def work(count):
                for _ in range(count):
                    reporter.record("dspy.Predict", 1.0)

            if __name__ == "__main__":
                work(5)
                context = multiprocessing.get_context(sys.argv[2])
                children = [context.Process(target=work, args=(count,)) for count in (10, 20, 30)]
                for child in children:
                    child.start()
                for child in children:
                    child.join()
                work(2)
                sys.exit(sum(child.exitcode for child in children))
            """
        )
    )
    with daemon(seeded_registry):
        arguments = [sys.executable, str(program), str(seeded_registry), method]
        assert subprocess.run(arguments, timeout=90, check=False).returncode == 0
    assert calls(seeded_registry) == 67


def test_a_forked_child_begins_anew(seeded_registry: Path) -> None:
    code = """
        import os
        reporter = UsageReporter(path, interval=3600)
        for _ in range(10):
            reporter.record("dspy.Predict", 1.0)
        if sys.argv[2] == "connected":
            assert reporter.flush(30)
            reporter.record("dspy.Predict", 1.0)
        child = os.fork()
        if child == 0:
            reporter.record("dspy.ReAct", 1.0)
            os._exit(0 if reporter.flush(30) else 1)
        assert os.waitpid(child, 0)[1] == 0
        reporter.record("dspy.Predict", 1.0)
        assert reporter.flush(30)
    """
    with daemon(seeded_registry):
        for how, expected in (("connected", 12), ("pending", 23)):
            done = worker(code, seeded_registry, how)
            assert done.returncode == 0, done.stderr
            assert calls(seeded_registry) == expected
    assert calls(seeded_registry, "dspy.ReAct") == 2


def test_a_fork_in_the_midst_of_everything(seeded_registry: Path) -> None:
    code = """
        import os, threading
        reporter = UsageReporter(path, interval=0.001)
        stop = threading.Event()
        recorded = 0

        def work():
            global recorded
            while not stop.is_set():
                reporter.record("dspy.Predict", 1.0)
                recorded += 1
                stop.wait(0.0001)

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(6):
            child = os.fork()
            if child == 0:
                reporter.record("dspy.ReAct", 1.0)
                os._exit(0 if reporter.flush(30) else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        thread.join()
        assert reporter.flush(30)
        print(recorded)
    """
    with daemon(seeded_registry):
        done = worker(code, seeded_registry)
        assert done.returncode == 0, done.stderr
    assert calls(seeded_registry) == int(done.stdout)
    assert calls(seeded_registry, "dspy.ReAct") == 6


def test_recording_loads_no_dspy_and_starts_no_thread_before_it_must(seeded_registry: Path) -> None:
    code = """
        import threading
        reporter = UsageReporter(path)
        assert threading.active_count() == 1
        reporter.record("dspy.Predict", 1.0)
        assert threading.active_count() == 2
        assert not {"dspy", "readers"} & set(sys.modules)
    """
    done = worker(code, seeded_registry)
    assert done.returncode == 0, done.stderr
