"""Runs the probe in the workers' interpreter, and reads its files without trusting them.

The interpreter is started as a worker would start: it inherits the environment and the working
directory, which both count for imports. Its output is dropped. The probe runs under a guard (`guard`), which kills all
that the probe and its packages have started when the probe ends, or when this process closes the guard's input.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from dspy_registry.registry_store.errors import DiscoveryError

_GUARD_SECONDS: Final = 3.0
MAX_BYTES: Final = 8 * 1024 * 1024
"""Bytes that are read of one root's files."""

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
    size: int = 0


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
    with tempfile.TemporaryDirectory(prefix="dspy-discovery-", ignore_cleanup_errors=True) as name:
        here = Path(__file__).resolve().parent
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            command = [python, "-c", _START, str(here), str(folder), str(timeout), *packages]
            code, noise, timed_out = _run(command, timeout, folder)
        finally:
            os.close(folder)
        run = _read(Path(name, "run.jsonl"))
        traces = {order: list(_traces(Path(name), order)) for order in range(len(packages) + 1)}
    executable = None
    for record in run.records:
        if isinstance(record, Hello):
            executable = record.executable
        elif isinstance(record, Died) and record.attempt in range(len(traces.get(record.root, ()))):
            traces[record.root][record.attempt].code = record.code
    if not timed_out and traces[0]:
        traces[0][0].code = code
    return Findings(executable, traces, timed_out, code, noise)


def _run(command: list[str], timeout: float, folder: int) -> tuple[int, str, bool]:
    """The exit code, the end of stderr, and whether the time was up first."""
    deadline = time.monotonic() + timeout
    # LiteLLM, which some DSPy import, otherwise fetches its price list from the network.
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", **os.environ}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            pass_fds=(folder,),
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
    with process:
        assert process.stderr is not None
        assert process.stdin is not None
        try:
            noise, timed_out = _drain(process.stderr.fileno(), deadline)
        finally:
            process.stdin.close()  # the guard then kills what is left
            _await_end(process.pid)
            # Before it is reaped: until then no other process or group can have its id.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, noise.decode("utf-8", "replace"), timed_out


def _await_end(pid: int) -> None:
    """Wait for the end of a child, though not for long. It is not reaped."""
    deadline = time.monotonic() + _GUARD_SECONDS
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) and time.monotonic() < deadline:
        time.sleep(0.005)


def _drain(descriptor: int, deadline: float) -> tuple[bytes, bool]:
    """The end of what was written, and whether the deadline passed before all writers were gone."""
    tail = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                chunk = os.read(descriptor, 65536)
                if not chunk:
                    return tail, False
                tail = (tail + chunk)[-2000:]
    return tail, True


def _traces(folder: Path, order: int) -> Iterator[Trace]:
    """The attempts at one root. They share its budget of bytes."""
    budget = MAX_BYTES
    for attempt in range(100):
        path = folder / f"{order}.{attempt}.jsonl"
        if not path.exists():
            return
        trace = _read(path, budget)
        budget -= trace.size
        yield trace


def _read(path: Path, budget: int = MAX_BYTES) -> Trace:
    """The records that can be decoded."""
    data, garbled = _bytes(path, budget)
    records = []
    for line in data.split(b"\n")[:-1]:  # the last one is empty, or was cut off
        try:
            records.append(_decoder.decode(line))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            garbled = f"a record that cannot be decoded ({error})"
    return Trace(records, garbled, size=len(data))


def _bytes(path: Path, budget: int) -> tuple[bytes, str | None]:
    """The file's beginning, and what is wrong with it. Only a regular file is read: packages may put anything there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return b"", None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b"", "something that is not a regular file"
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(budget + 1)
    finally:
        os.close(descriptor)
    if len(data) > budget:
        return data[:budget], f"more than {MAX_BYTES // 1024 // 1024} MiB"
    return data, None
