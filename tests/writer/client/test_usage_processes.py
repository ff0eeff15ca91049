"""A reporter in processes that end, fork or are children: each sends what is left, once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.command import daemon
from tests.support.fork_server import start_code
from tests.support.reporting import calls, worker


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


@pytest.mark.parametrize("interval", [1.0, 30.0])
@pytest.mark.parametrize("ending", ["pass", "assert reporter.flush(30)", "assert reporter.close(30)"])
def test_i26_the_last_calls_arrive_though_the_daemon_was_restarted(
    seeded_registry: Path, ending: str, interval: float
) -> None:
    """The reporter was connected to the daemon before. Its next step is the last thing that the process does."""
    head = f"""
        import sys
        from dspy_registry import UsageReporter
        reporter = UsageReporter(sys.argv[1], interval={interval})
        reporter.record("dspy.Predict", 1.0)
        print(reporter.flush(30), flush=True)
        sys.stdin.readline()
        for _ in range(10):
            reporter.record("dspy.Predict", 1.0)
    """
    with daemon(seeded_registry):
        process = start_code(textwrap.dedent(head) + ending, seeded_registry, whole_end=True)
        assert process.stdout.readline() == "True\n"
    with daemon(seeded_registry):
        process.stdin.write("\n")
        process.close()
        assert process.wait() == 0
    assert calls(seeded_registry) == 11


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_send_what_is_left(seeded_registry: Path, tmp_path: Path, method: str) -> None:
    program = tmp_path / "pool.py"
    program.write_text(
        textwrap.dedent(
            """
            import multiprocessing, sys
            from dspy_registry import UsageReporter

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


def test_a_call_counts_while_another_thread_imports_multiprocessing(seeded_registry: Path) -> None:
    code = """
        import importlib.util, threading

        class Slow:
            def find_spec(self, name, path=None, target=None):
                if name != "multiprocessing.util":
                    return None
                sys.meta_path.remove(self)
                spec = importlib.util.find_spec(name)
                run = spec.loader.exec_module
                spec.loader.exec_module = lambda module: (begun.set(), release.wait(30), run(module))
                return spec

        begun, release = threading.Event(), threading.Event()
        sys.meta_path.insert(0, Slow())
        importing = threading.Thread(target=lambda: __import__("multiprocessing.util"))
        importing.start()
        assert begun.wait(30)
        UsageReporter(path).record("dspy.Predict", 1.0)
        assert importing.is_alive()  # `record` did not wait for the import
        release.set()
        importing.join()
    """
    with daemon(seeded_registry):
        done = worker(code, seeded_registry)
        assert (done.returncode, done.stderr) == (0, "")
    assert calls(seeded_registry) == 1


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
            assert os.waitpid(child, 0)[1] == 0, "a child did not deliver its call"
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
