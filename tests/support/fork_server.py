"""Processes for tests. A server that has imported what they need forks them: most take less time than their imports.

A child is like a process of `python -c`. The test gives it pipes, environment, folder and umask. It ends as an
interpreter ends, except for what `_run_and_exit` leaves out. Its parent is the test's process, which waits for it and
can kill it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.support import ROOT, tracebacks

WHAT_MOST_NEED: Final = (
    "pytest",
    "tests.support.daemon_process",
    "dspy_registry.readers.registry",
    "dspy_registry.writer.registry_writer",
    "dspy_registry.writer.client.async_client",
    "dspy_registry.writer.client.reporter",
    "dspy_registry.cli.program",
    "dspy_registry.cli.serve",
    "dspy_registry.cli.manifests",
    "watchfiles",
)
WITH_DSPY: Final = (*WHAT_MOST_NEED, "dspy", "tests.support.dspy_program_costs")
_START: Final = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.support.fork_server import serve
work = serve(int(sys.argv[2]), sys.argv[3:])
if work is not None:
    work()
"""
_LONGEST_ORDER: Final = 1 << 17  # bytes; the system carries it in one piece
_SET_CHILD_SUBREAPER: Final = 36


class Forked:
    """What of `subprocess.Popen` the tests use, for a process that the server has forked."""

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int | None) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin: Any = os.fdopen(stdin, "w", encoding="utf-8")
        self.stdout: Any = os.fdopen(stdout, encoding="utf-8")
        self.stderr: Any = None if stderr is None else os.fdopen(stderr, encoding="utf-8")

    def poll(self) -> int | None:
        """The exit status; negative: the signal that killed it; None: it runs."""
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """The same, once it has ended. Raises TimeoutExpired."""
        until = None if timeout is None else time.monotonic() + timeout
        while (status := self._wait(0 if until is None else os.WNOHANG)) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(0.005)
        return status

    def send_signal(self, number: int) -> None:
        """Does nothing to a process that was waited for: its number may be another's."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close the pipes."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def _wait(self, options: int) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, options))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode


class _Server:
    """The server of this process and of these imports."""

    def __init__(self, imports: tuple[str, ...]) -> None:
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", _START, str(ROOT), str(theirs.fileno()), *imports]
        devnull = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=devnull, stdout=devnull)
        theirs.close()
        atexit.register(self._close, os.getpid())

    def fork(self, order: bytes, files: list[int]) -> int:
        """Send the order; the pid of the process that carries it out."""
        libc = ctypes.CDLL(None)
        libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # so that a process whose parent ends becomes a child of this one
        try:
            socket.send_fds(self._link, [order], files)
            return int(self._link.recv(64))
        finally:
            libc.prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def _close(self, owner: int) -> None:
        if os.getpid() == owner:
            self._link.close()
            self._process.wait()


_servers: dict[tuple[int, tuple[str, ...]], _Server] = {}
_lock: Final = threading.Lock()


def start(
    module: str,
    function: str,
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    imports: tuple[str, ...] = WHAT_MOST_NEED,
    folder: Path | None = None,
    stderr: int | None = None,
    whole_end: bool = False,
) -> Forked:
    """Start a process that calls `module.function` and talks over pipes.

    `environment` None and `folder` None: those of this process. `stderr` is a file descriptor, or PIPE; None: that of
    this process. `whole_end` True: the process ends like any interpreter, and leaves nothing out.
    """
    given = json.dumps(arguments, default=os.fspath)
    there = dict(os.environ if environment is None else environment)
    order = json.dumps([module, function, given, there, str(folder or Path.cwd()), _umask(), whole_end]).encode()
    assert len(order) < _LONGEST_ORDER
    stdin, to_stdin = os.pipe()
    from_stdout, stdout = os.pipe()
    from_stderr, errors = os.pipe() if stderr == subprocess.PIPE else (None, 2 if stderr is None else stderr)
    with _lock:
        key = os.getpid(), imports
        server = _servers.get(key) or _servers.setdefault(key, _Server(imports))
        pid = server.fork(order, [stdin, stdout, errors])
    os.close(stdin)
    os.close(stdout)
    if from_stderr is not None:
        os.close(errors)
    return Forked(pid, to_stdin, from_stdout, from_stderr)


def start_code(code: str, *arguments: object, **options: Any) -> Forked:
    """The same for a program, as `python -c` runs it."""
    return start(__name__, "execute", textwrap.dedent(code), *map(str, arguments), **options)


def run(
    module: str, function: str, *arguments: Any, stdin: str = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Start a process and wait for its end. Returns its exit status and output."""
    process = start(module, function, *arguments, stderr=subprocess.PIPE, **options)
    errors: list[str] = []
    reading = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reading.start()
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(stdin)
            process.stdin.close()
        stdout = process.stdout.read()
        status = process.wait()
    except BaseException:  # the test took too long
        tracebacks.ask_and_kill(process.pid)
        reading.join()
        print(*errors, file=sys.stderr)
        raise
    finally:
        process.kill()
        reading.join()
        process.close()
    return subprocess.CompletedProcess([*map(str, arguments)], status, stdout, errors[0])


def run_code(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same for a program, as `python -c` runs it."""
    return run(__name__, "execute", textwrap.dedent(code), *map(str, arguments), **options)


def execute(code: str, *arguments: str) -> None:
    """In the child."""
    sys.argv = ["-c", *arguments]
    try:
        exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
    except Exception:
        tracebacks.end_though_threads_go_on()
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


# The server's side


def serve(number: int, imports: list[str]) -> Callable[[], None] | None:
    """Fork at each order. Returns in each child what it is to do, and None in the server when the tests are over."""
    for module in imports:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # or each child would copy every object that its collector looks at
    with socket.socket(fileno=number) as link:
        while True:
            order, files, _, _ = socket.recv_fds(link, _LONGEST_ORDER, 3)
            if not order:
                return None
            pid = _fork_for_parent()
            if not pid:
                break
            for file in files:
                os.close(file)
            link.send(b"%d" % pid)
    return _become(json.loads(order), files)


def _fork_for_parent() -> int:
    """As `os.fork`. A process in between ends at once, so that the child belongs to whoever gave the order."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        child = os.fork()
        if child:
            os.write(writing, b"%d" % child)
            os._exit(0)
        os.close(reading)
        os.close(writing)
        return 0
    os.waitpid(between, 0)
    child = int(os.read(reading, 64))
    os.close(reading)
    os.close(writing)
    return child


def _become(order: list[Any], files: list[int]) -> Callable[[], None]:
    module, function, arguments, environment, folder, umask, whole_end = order
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    tracebacks.tell_when_asked()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.umask(umask)
    sys.path[1:1] = environment.get("PYTHONPATH", "").split(os.pathsep) if environment.get("PYTHONPATH") else []
    sys.argv = ["-c", str(ROOT), module, function, arguments]
    from dspy_registry.writer import failpoints

    importlib.reload(failpoints)  # it reads the environment when it is imported

    def work() -> None:
        getattr(importlib.import_module(module), function)(*json.loads(arguments))

    return work if whole_end else lambda: _run_and_exit(work)


def _run_and_exit(work: Callable[[], None]) -> None:
    """Do the work, then wait for threads, run exit handlers, flush streams and exit. Modules are not taken apart.

    To take them apart would write to the memory that the child shares with the server, and so copy it: that took 40 of
    the 50 ms of a child. An error of the work ends the child in the usual way.
    """
    status = 0
    try:
        work()
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)
