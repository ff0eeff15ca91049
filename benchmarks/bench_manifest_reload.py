"""`python benchmarks/bench_manifest_reload.py`: how long from a manifest's save until a reader sees it.

A daemon follows a folder, in a process of its own. This process saves a file, and then asks its own Registry again and
again until the new value is there; the time begins when the save has returned. No figure decides anything.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from readers import Registry

_SERVE: Final = """
import sys
from writer.daemon import serve
from writer.manifests import attach_manifests
attach = lambda daemon: attach_manifests(daemon, sys.argv[2])
serve(sys.argv[1], extensions=[attach], ready=lambda daemon: print("ready", flush=True))
"""
_POLL_SECONDS: Final = 0.0002
_PATIENCE_SECONDS: Final = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=100, help="saves to measure of each kind (default: 100)")
    parser.add_argument("--files", type=int, default=1000, help="files in the larger folder (default: 1000)")
    parser.add_argument("--json", type=Path, help="where the raw times go, in milliseconds")
    asked = parser.parse_args()
    raw: dict[str, list[float]] = {}
    for files in (1, asked.files):
        for kind, save in (("in place", _in_place), ("renamed over", _renamed_over)):
            name = f"{kind}, {files} file{'s' if files > 1 else ''}"
            raw[name] = _saves(save, files, asked.saves)
            print(_row(name, raw[name]), flush=True)
    times, revisions = _checkouts(asked.files, 5)
    name = f"checkout of {asked.files} files"
    raw[name] = times
    print(f"{_row(name, times)}; commits of each: {', '.join(map(str, revisions))}")
    print(f"Python {platform.python_version()}, {platform.system()} {platform.release()}")
    if asked.json:
        asked.json.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


def _row(name: str, times: list[float]) -> str:
    ordered = sorted(times)
    p90, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.9, 0.99))
    middle = statistics.median(ordered)
    return f"{name:26} median {middle:6.1f} ms, p90 {p90:6.1f}, p99 {p99:6.1f}, max {ordered[-1]:6.1f}"


@contextmanager
def _serving(folder: Path) -> Iterator[Registry]:
    path = folder.parent / "registry"
    command = [sys.executable, "-c", _SERVE, str(path), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with Registry(path) as registry:
            yield registry
    finally:
        process.terminate()
        process.communicate()


def _until(condition: Callable[[], bool]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > _PATIENCE_SECONDS:
            raise TimeoutError("the change was not seen")
        time.sleep(_POLL_SECONDS)
    return (time.perf_counter() - began) * 1000


def _module(name: str, duration: int) -> str:
    return f'[[modules]]\nname = "{name}"\ncapabilities = ["reasoning"]\nestimated_duration = {duration}\n'


def _in_place(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def _renamed_over(file: Path, text: str) -> None:
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def _saves(save: Callable[[Path, str], None], files: int, count: int) -> list[float]:
    times = []
    with tempfile.TemporaryDirectory(prefix="manifests-") as base:
        folder = Path(base, "manifests")
        folder.mkdir()
        for number in range(files):
            (folder / f"m{number}.toml").write_text(_module(f"acme.M{number}", 0), encoding="utf-8")
        with _serving(folder) as registry:
            _until(lambda: f"acme.M{files - 1}" in registry)
            for duration in range(1, count + 1):
                time.sleep(0.1 + random.random() / 10)  # people do not save in step with anything
                save(folder / "m0.toml", _module("acme.M0", duration))
                times.append(_until(lambda: registry["acme.M0"].estimated_duration == duration))  # noqa: B023
    return times


def _checkouts(files: int, count: int) -> tuple[list[float], list[int]]:
    times, revisions = [], []
    with tempfile.TemporaryDirectory(prefix="manifests-") as base:
        folder = Path(base, "manifests")
        folder.mkdir()
        _git(folder, "init", "--quiet")
        for branch in ("one", "two"):
            _git(folder, "checkout", "--quiet", "-b", branch)
            for number in range(files):
                text = _module(f"acme.M{number}", len(branch) if branch == "one" else 7)
                (folder / f"m{number}.toml").write_text(text, encoding="utf-8")
            _git(folder, "add", ".")
            _git(folder, "commit", "--quiet", "-m", branch)
        with _serving(folder) as registry:
            _until(lambda: len(registry) >= files)
            for turn in range(count):
                branch, duration = ("one", 3) if turn % 2 == 0 else ("two", 7)
                time.sleep(1)
                before = registry.revision
                _git(folder, "checkout", "--quiet", branch)
                last = f"acme.M{files - 1}"
                times.append(_until(lambda: registry[last].estimated_duration == duration))  # noqa: B023
                time.sleep(1)
                revisions.append(registry.revision - before)
    return times, revisions


def _git(folder: Path, *arguments: str) -> None:
    settings = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    subprocess.run(["git", *settings, *arguments], cwd=folder, check=True)


if __name__ == "__main__":
    main()
