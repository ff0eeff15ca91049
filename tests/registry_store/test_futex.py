"""Waiting for a word of a mapped file: woken, in time, interrupted, and where there is no futex."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dspy_registry.registry_store import futex
from dspy_registry.registry_store.futex import LONGEST_WAIT, FutexWord
from tests.support import ROOT
from tests.support.forks import await_all, fork


class Words:
    """The same word through a mapping that may be written and one that may not."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            self.written = FutexWord(mmap.mmap(file.fileno(), 4096), 64)
            self.read = FutexWord(mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_READ), 64)


@pytest.fixture(params=["futex", "polling"])
def words(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Words:
    if request.param == "polling":
        monkeypatch.setattr(futex, "_number", lambda: None)
        monkeypatch.setattr(futex, "_system_call", lambda: None)
    return Words(tmp_path / "word")


def test_nobody_who_does_not_wait_is_set_aside(words: Words) -> None:
    assert not words.written.set_aside()
    words.written.wake_aside()
    assert words.read.value == 0


@pytest.mark.skipif(not futex.is_available(), reason="those who wait poll")
def test_who_is_set_aside_sleeps_until_those_are_woken(tmp_path: Path) -> None:
    words = Words(tmp_path / "word")
    woken: list[int] = []
    sleeper = threading.Thread(target=lambda: (words.read.wait(0, LONGEST_WAIT), woken.append(1)))
    sleeper.start()
    while sleeper.is_alive() and not words.written.set_aside():
        time.sleep(0.001)
    words.written.wake_aside()
    sleeper.join()
    assert woken == [1]
    assert not words.written.set_aside()


def test_a_wait_ends_in_time(words: Words) -> None:
    began = time.monotonic()
    words.read.wait(0, 0.05)
    assert time.monotonic() - began >= 0.04


def test_no_wait_is_for_another_value_or_longer_than_the_longest(words: Words) -> None:
    words.read.wait(1, 3600.0)
    began = time.monotonic()
    words.read.wait(0, 3600.0)
    assert time.monotonic() - began >= LONGEST_WAIT * 0.9


@pytest.mark.parametrize(
    "tell", [lambda word: (word.change(), word.wake_one()), lambda word: (word.store(1), word.wake_all())]
)
def test_another_process_wakes(words: Words, tell: Callable[[FutexWord], object]) -> None:
    """Were it lost, every wait would still end: so what is waited for is the value."""
    pid = fork(lambda: (time.sleep(0.05), tell(words.written)))
    while words.read.value == 0:
        words.read.wait(0, 1.0)
    await_all(pid)


def wait_until_changed(words: Words) -> None:
    while words.read.value == 0:
        words.read.wait(0, 1.0)


def test_a_signal_interrupts_a_wait(words: Words) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            wait_until_changed(words)
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_other_threads_run_meanwhile(words: Words) -> None:
    counted: list[int] = []

    def count() -> None:
        counted.extend(range(1000))
        words.written.store(1)
        words.written.wake_all()

    counting = threading.Thread(target=count)
    counting.start()
    while words.read.value == 0:
        words.read.wait(0, 1.0)
    counting.join()
    assert len(counted) == 1000


def test_the_interpreter_ends_while_a_thread_waits(tmp_path: Path) -> None:
    scene = f"""
import threading, time
from pathlib import Path
from tests.registry_store.test_futex import Words
words = Words(Path({str(tmp_path / "word")!r}))
def wait():
    while True:
        words.read.wait(0, 1.0)
for _ in range(4):
    threading.Thread(target=wait, daemon=True).start()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", scene], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_it_lets_go_of_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "word"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 4096)
    word = FutexWord(mapping, 64)
    with pytest.raises(BufferError):
        mapping.close()
    word.release()
    word.release()
    mapping.close()


def test_a_word_that_outlives_its_module_lets_go(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the interpreter ends, it empties modules in an order of its own."""
    monkeypatch.setattr(futex, "ctypes", None)
    words.read.release()
    with pytest.raises(ValueError, match="released"):
        _ = words.read.value


def test_a_word_is_aligned() -> None:
    with mmap.mmap(-1, 4096) as mapping, pytest.raises(ValueError, match="aligned"):
        FutexWord(mapping, 63)


def test_this_machine_has_one() -> None:
    if os.uname().machine in ("x86_64", "aarch64"):
        assert futex._number() is not None
