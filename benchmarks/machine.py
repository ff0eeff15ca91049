"""Describes the machine, the versions and the commit of a run."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]

# Files that may change a figure. Results and docs are not among them: a run writes those.
_MEASURED: Final = (
    "dspy_registry",
    "registry_store",
    "writer",
    "readers",
    "benchmarks",
    "pyproject.toml",
    ":(exclude)benchmarks/results",
)
_PACKAGES: Final = ("lmdb", "msgspec", "pyroaring", "redis", "hiredis", "diskcache", "UltraDict", "rocksdict")


def machine(folder: Path, file_system: str) -> dict[str, Any]:
    """Processor, memory, disk, commit, and the versions of all libraries involved."""
    import lmdb

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory, GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "file system": file_system,
        "sync, ms": _sync_ms(folder),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "liblmdb": ".".join(map(str, lmdb.version())),
        "sqlite": sqlite3.sqlite_version,
        "commit": commit(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _sync_ms(folder: Path) -> float:
    """Median time to append 4 KiB and sync them. No durable commit can be quicker."""
    import statistics
    import time

    file = folder / "sync-probe"
    times = []
    with file.open("wb", buffering=0) as probe:
        for _ in range(21):
            start = time.perf_counter()
            probe.write(bytes(4096))
            os.fdatasync(probe.fileno())
            times.append(time.perf_counter() - start)
    file.unlink()
    return round(statistics.median(times) * 1000, 3)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit(root: Path = ROOT) -> str | None:
    """The commit that is checked out; "-dirty" is added if the measured files differ from it. None without git."""
    try:
        found = _git(root, "describe", "--always", "--abbrev=12")
        changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *_MEASURED)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found}-dirty" if changed else found


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
