"""Measurements that need a fresh process with nothing else loaded: `python -m benchmarks.probes WHAT …`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def probe(*arguments: str) -> float:
    """The number that a fresh process prints."""
    command = [sys.executable, "-m", "benchmarks.probes", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[1])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return float(done.stdout)


@contextmanager
def holding(*arguments: str) -> Iterator[int]:
    """Yield the pid of a fresh process that has read something and keeps it in memory."""
    command = [sys.executable, "-m", "benchmarks.probes", *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[1]
    )
    try:
        if process.stdout is None or not process.stdout.readline():
            raise RuntimeError(f"{' '.join(command)} failed")
        yield process.pid
    finally:
        process.communicate()


def kibibytes(pid: int | str, field: str) -> int:
    """A field of smaps_rollup (`Anonymous`, `Pss`), in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise KeyError(field)


def _attach(path: str, name: str) -> float:
    """Nanoseconds from opening the registry to its first answer."""
    from dspy_registry import Registry

    start = time.perf_counter_ns()
    registry = Registry(path)
    registry.get_module(name)
    taken = time.perf_counter_ns() - start
    registry.close()
    return taken


def _memory(path: str, asked: str) -> float:
    """Bytes of anonymous memory after reading all names of a file."""
    from dspy_registry import Registry

    with Registry(path) as registry:
        _read_all(registry, asked)
        return kibibytes("self", "Anonymous") * 1024


def _read_all(registry: object, asked: str) -> None:
    get = registry.get_module  # type: ignore[attr-defined]
    with Path(asked).open(encoding="utf-8") as names:
        for name in names:
            get(name.rstrip("\n"))


def _imports(modules: str) -> float:
    """Nanoseconds to import modules."""
    start = time.perf_counter_ns()
    for module in modules.split(","):
        __import__(module)
    return time.perf_counter_ns() - start


def _hold_registry(path: str, asked: str) -> None:
    from dspy_registry import Registry

    with Registry(path) as registry:
        _read_all(registry, asked)
        _wait()


def _hold_dict(path: str) -> None:
    """What a worker does without a registry: every record in its own dict."""
    import lmdb
    import msgspec

    from dspy_registry import ModuleInfo

    decode = msgspec.msgpack.Decoder(ModuleInfo).decode
    with lmdb.open(path, readonly=True) as env, env.begin() as txn:
        records = {key.decode(): decode(value) for key, value in txn.cursor()}
    _wait()
    del records


def _wait() -> None:
    print("ready", flush=True)
    sys.stdin.read()


def main(what: str, *arguments: str) -> None:
    """Measure one thing, and print it."""
    if what == "attach":
        print(_attach(*arguments))
    elif what == "memory":
        print(_memory(*arguments))
    elif what == "imports":
        print(_imports(*arguments))
    elif what == "hold-registry":
        _hold_registry(*arguments)
    elif what == "hold-dict":
        _hold_dict(*arguments)
    else:
        sys.exit(f"no probe is named {what}")


if __name__ == "__main__":
    main(*sys.argv[1:])
