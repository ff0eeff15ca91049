"""Runs the probe in the workers' interpreter, and reads its reports without trusting them.

The interpreter is started as a worker would start: it inherits the environment and the working
directory, which both count for imports. Its output is dropped. The probe runs under a guard (`guard`), which kills all
that the probe and its packages have started when the probe ends, or when this process closes the guard's input.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from dspy_registry.registry_store.errors import DiscoveryError
from dspy_registry.writer.discovery.frames import Reports

_GUARD_SECONDS: Final = 3.0
MAX_BYTES: Final = 8 * 1024 * 1024
"""Bytes that are read of one root's reports."""

# The probe's files become a package of another name. If this folder were on sys.path, `import report`
# would find a file of this project.
_START: Final = """
import sys, types
package = types.ModuleType("_dspy_registry_probe")
package.__path__ = [sys.argv[1]]
sys.modules[package.__name__] = package
from _dspy_registry_probe.probe import main
main(*sys.argv[2:])
"""

Text = Annotated[str, msgspec.Meta(max_length=5000)]


class Hello(msgspec.Struct, tag="hello", frozen=True):
    executable: Text


class Version(msgspec.Struct, tag="version", frozen=True):
    package: Text
    version: Text | None


class At(msgspec.Struct, tag="at", frozen=True):
    """The records up to the next `At` are about this module."""

    module: Text


class Parameter(msgspec.Struct, frozen=True):
    name: Text
    required: bool
    default: bool | int | float | Text | msgspec.UnsetType | None = msgspec.UNSET


class Declared(msgspec.Struct, frozen=True):
    """What a class declares of itself. None: it leaves the field to discovery."""

    name: Text | None = None
    category: Text | None = None
    capabilities: list[Text] | None = None
    memory: Text | None = None
    compute: Text | None = None
    gpu: bool | None = None
    pool_type: Text | None = None
    estimated_duration: int | None = None
    description: Text | None = None


class Seen(msgspec.Struct, tag="class", frozen=True):
    """One name of a class. `key` is the same for all its names, `path` is where it is defined."""

    key: Text
    name: Text
    kind: Literal["module", "optimizer", "retriever"]
    path: Text
    abstract: bool
    mro: list[Text]
    parameters: list[Parameter] | None
    doc: Text | None
    init_doc: Text | None
    declared: Declared | None = None
    uses: list[Text] = []
    inputs: list[Text] | None = None


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """`absent`: the environment has no such package."""

    name: Text
    reason: Text
    absent: bool


class End(msgspec.Struct, tag="end", frozen=True):
    """Everything has been looked at."""


class Died(msgspec.Struct, tag="died", frozen=True):
    """A fork ended early. A negative code is the signal that killed it."""

    root: int
    attempt: int
    code: int


Record = Hello | Version | At | Seen | Failed | End | Died

_decoder = msgspec.json.Decoder(Record)


class Trace(msgspec.Struct):
    """What one attempt reported. `code` is its exit code, None: it was still running when the time was up."""

    records: list[Record]
    garbled: str | None = None
    code: int | None = None


class Findings(msgspec.Struct):
    """The attempts at each root; 0 is dspy. `noise` is the end of the probe's stderr."""

    executable: str | None
    traces: dict[int, list[Trace]]
    timed_out: bool
    code: int
    noise: str


def run_probe(python: str, packages: Sequence[str], timeout: float) -> Findings:
    """Look at the environment of `python` for at most `timeout` seconds.

    Raises DiscoveryError when it cannot be started.
    """
    reports = Reports(MAX_BYTES)
    here = Path(__file__).resolve().parent
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [python, "-c", _START, str(here), str(theirs.fileno()), str(timeout), *packages]
        code, noise, timed_out = _run(command, timeout, ours, theirs, reports)
    traces = {order: list(_traces(reports, order)) for order in range(len(packages) + 1)}
    executable = None
    for record in _read(reports.report("run") or b"").records:
        if isinstance(record, Hello):
            executable = record.executable
        elif isinstance(record, Died) and record.attempt in range(len(traces.get(record.root, ()))):
            traces[record.root][record.attempt].code = record.code
    if not timed_out and traces[0]:
        traces[0][0].code = code
    return Findings(executable, traces, timed_out, code, noise)


def _run(
    command: list[str], timeout: float, ours: socket.socket, theirs: socket.socket, reports: Reports
) -> tuple[int, str, bool]:
    """The exit code, the end of stderr, and whether the time was up first. Reports are taken in meanwhile."""
    deadline = time.monotonic() + timeout
    # LiteLLM, which some DSPy import, otherwise fetches its price list from the network.
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", **os.environ}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise DiscoveryError(
            f"{command[0]!r} cannot be started: {error}.",
            remedy="Name the workers' Python interpreter (--python).",
        ) from error
    theirs.close()
    ours.setblocking(False)
    with process:
        assert process.stderr is not None
        assert process.stdin is not None
        try:
            noise, timed_out = _drain(process.stderr.fileno(), ours, reports, deadline)
        finally:
            process.stdin.close()  # the guard then kills what is left
            _await_end(process.pid)
            # Before it is reaped: until then no other process or group can have its id.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            _take(ours, reports)
    return process.returncode, noise.decode("utf-8", "replace"), timed_out


def _await_end(pid: int) -> None:
    """Wait for the end of a child, though not for long. It is not reaped."""
    deadline = time.monotonic() + _GUARD_SECONDS
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) and time.monotonic() < deadline:
        time.sleep(0.005)


def _drain(errors: int, ours: socket.socket, reports: Reports, deadline: float) -> tuple[bytes, bool]:
    """The end of what was written as errors, and whether the deadline passed before all writers were gone."""
    tail = b""
    with selectors.DefaultSelector() as selector:
        selector.register(errors, selectors.EVENT_READ)
        selector.register(ours, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            ready = {key.fd for key, _ in selector.select(left)}
            if ours.fileno() in ready and not _take(ours, reports):
                selector.unregister(ours)
            if errors in ready:
                chunk = os.read(errors, 65536)
                if not chunk:
                    return tail, False
                tail = (tail + chunk)[-2000:]
    return tail, True


def _take(ours: socket.socket, reports: Reports) -> bool:
    """Take in what has come. Returns whether more may come."""
    while True:
        try:
            data = ours.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        reports.take(data)


def _traces(reports: Reports, order: int) -> Iterator[Trace]:
    """The attempts at one root."""
    for attempt in range(100):
        name = f"{order}.{attempt}"
        data = reports.report(name)
        if data is None:
            return
        yield _read(data, is_cut=name in reports.cut)


def _read(data: bytes, *, is_cut: bool = False) -> Trace:
    """The records that can be decoded."""
    garbled = f"more than {MAX_BYTES // 1024 // 1024} MiB" if is_cut else None
    records = []
    for line in data.split(b"\n")[:-1]:  # the last one is empty, or was cut off
        try:
            records.append(_decoder.decode(line))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            garbled = f"a record that cannot be decoded ({error})"
    return Trace(records, garbled)
