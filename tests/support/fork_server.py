"""Processes for tests, forked by a server that has imported what they need: the imports cost more than most of them do.

A child is what `python -c` would have made: its pipes, environment, folder and umask are those that the test gives it,
and it ends as an interpreter ends. It is a child of the test's process, which waits for it and can kill it.
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
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.support import ROOT

WHAT_MOST_NEED: Final = (
    "pytest",
    "tests.support.daemon_process",
    "dspy_registry.readers.registry",
    "dspy_registry.writer.registry_writer",
    "dspy_registry.writer.client.async_client",
    "dspy_registry.writer.client.reporter",
)
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

    def __init__(self, pid: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin: Any = os.fdopen(stdin, "w", encoding="utf-8")
        self.stdout: Any = os.fdopen(stdout, encoding="utf-8")

    def poll(self) -> int | None:
        """The exit status; negative: the signal that killed it; None: it runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """The same, once it has ended."""
        status = self._wait(0)
        assert status is not None
        return status

    def kill(self) -> None:
        """Does nothing to a process that was waited for: its number may be another's."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

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
    module: str, function: str, arguments: str, environment: Mapping[str, str], imports: tuple[str, ...]
) -> Forked:
    """A process that calls `module.function` with arguments in JSON, talking over pipes."""
    order = json.dumps([module, function, arguments, dict(environment), str(Path.cwd()), _umask()]).encode()
    assert len(order) < _LONGEST_ORDER
    stdin, to_stdin = os.pipe()
    from_stdout, stdout = os.pipe()
    with _lock:
        key = os.getpid(), imports
        server = _servers.get(key) or _servers.setdefault(key, _Server(imports))
        pid = server.fork(order, [stdin, stdout, 2])
    os.close(stdin)
    os.close(stdout)
    return Forked(pid, to_stdin, from_stdout)


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
    module, function, arguments, environment, folder, umask = order
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.umask(umask)
    sys.argv = ["-c", str(ROOT), module, function, arguments]
    from dspy_registry.writer import failpoints

    importlib.reload(failpoints)  # it reads the environment when it is imported
    return lambda: getattr(importlib.import_module(module), function)(*json.loads(arguments))
