"""`python -m benchmarks.two_trees FORMER FOLDER`: this tree beside the former one, whose root is FORMER.

Registries are made in FOLDER: on a disk, or in memory. A pair is one fresh process of each tree. The two take turns in
small portions, so a machine that changes its speed changes it for both. Every pair gives one ratio. A process keeps the
memory that it got by chance, so only several pairs tell anything.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

PAIRS: Final = 9
TURNS: Final = 50
_WORK: Final = """
import subprocess, sys, time, statistics
from dspy_registry import ModuleInfo, Registry, RegistryWriter

kind, path, number = sys.argv[1], sys.argv[2], 0
clock = time.perf_counter_ns

def module(name, duration):
    return ModuleInfo(f"a.M{name}", capabilities=(f"c{name % 20}",), estimated_duration=duration)

def timed(work):
    began = clock()
    work()
    return clock() - began

def register():
    global number
    number += 7
    return timed(lambda changed=module(number % 1000, number): writer.register_module(changed))

def attach():
    code = "import sys, time; from dspy_registry import Registry; began = time.perf_counter_ns();"
    code += "Registry(sys.argv[1]).get_module('a.M500'); print(time.perf_counter_ns() - began)"
    return int(subprocess.run([sys.executable, "-c", code, path], stdout=-1, check=True).stdout)

def pass_of_first_reads():
    with Registry(path) as registry:
        len(registry)
        times = [timed(lambda name=f"a.M{at}": registry.get_module(name)) for at in range(1000)]
    return statistics.median(times)

def pass_of_cached_reads():
    if not kept:
        kept.append(Registry(path))
        for _ in range(3):
            for name in names:
                kept[0].get_module(name)
    get = kept[0].get_module
    began = clock()
    for name in names:
        get(name)
    return (clock() - began) / len(names)

kept, names = [], [f"a.M{at}" for at in range(1000)]
work, times = {
    "registration": (register, 20),
    "attach": (attach, 1),
    "first read": (pass_of_first_reads, 1),
    "cached read": (pass_of_cached_reads, 5),
}[kind]
with RegistryWriter(path) as writer:
    writer.register_modules([module(at, at + 1) for at in range(1000)])
    for _ in range(2 * times):
        work()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(statistics.median([work() for _ in range(times)]), flush=True)
"""
KINDS: Final = ("registration", "attach", "first read", "cached read")


def main() -> None:
    """Print a line for each kind of work, and last all ratios as JSON."""
    former, folder = sys.argv[1:]
    found: dict[str, list[float]] = {}
    for kind in KINDS:
        found[kind] = sorted(_ratio(kind, Path(former), folder) for _ in range(PAIRS))
        least, middle, most = found[kind][0], statistics.median(found[kind]), found[kind][-1]
        print(f"{kind:12}  median {middle:.3f} x, {least:.3f} to {most:.3f} x in {PAIRS} pairs", flush=True)
    print(json.dumps({kind: [round(ratio, 4) for ratio in ratios] for kind, ratios in found.items()}))


def _ratio(kind: str, former: Path, folder: str) -> float:
    """How much longer this tree takes than the former one, as the median of the turns of one pair."""
    with tempfile.TemporaryDirectory(dir=folder) as room:
        pair = [_begun(tree, kind, Path(room, str(at))) for at, tree in enumerate((former, Path.cwd()))]
        turns = []
        for turn in range(TURNS):
            order = (0, 1) if turn % 2 else (1, 0)
            took = {at: _turn(pair[at]) for at in order}
            turns.append(took[1] / took[0])
        for process in pair:
            process.communicate()
    return statistics.median(turns)


def _begun(tree: Path, kind: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _WORK, kind, str(path)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree.resolve())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _turn(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


if __name__ == "__main__":
    main()
