"""What a test's process that hangs, or fails while its threads go on, tells the test."""

from __future__ import annotations

import pytest

from tests.support.fork_server import run_code, start_code
from tests.support.tracebacks import ask_and_kill


@pytest.mark.parametrize("whole_end", [False, True])
def test_a_failed_assertion_is_told_though_a_thread_goes_on(whole_end: bool) -> None:
    code = """
        import threading
        threading.Thread(target=threading.Event().wait).start()
        assert not "told"
    """
    done = run_code(code, whole_end=whole_end)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr


def test_a_process_that_hangs_tells_where_and_so_does_its_child(capfd: pytest.CaptureFixture[str]) -> None:
    code = """
        import os, time

        def hanging_child():
            print("begun", flush=True)
            time.sleep(1000)

        def hanging_parent():
            os.wait()

        hanging_parent() if os.fork() else hanging_child()
    """
    process = start_code(code)
    assert process.stdout.readline() == "begun\n"
    ask_and_kill(process.pid)
    assert process.stdout.read() == "", "both have ended"
    process.wait()
    process.close()
    told = capfd.readouterr().err
    assert "hanging_parent" in told
    assert "hanging_child" in told
