"""The command: `python -m tests.stress`. Exit status 1 where anything was violated."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.stress.faults import Case, Fault, Plan
from tests.stress.table import FAULTS

_SHOWN = 5
_INTERRUPTED = "interrupted"


@dataclass
class Result:
    """What came of one fault."""

    fault: Fault
    tried: int = 0
    seconds: float = 0.0
    violations: list[dict[str, Any]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)


class Progress:
    """One line on the terminal; silent where nobody looks."""

    def __init__(self) -> None:
        self._shown = 0.0
        self._is_live = sys.stderr.isatty()

    def show(self, result: Result, wanted: int) -> None:
        now = time.monotonic()
        if now - self._shown < (1.0 if self._is_live else 30.0):
            return
        self._shown = now
        line = f"{result.fault.name}: {result.tried:,} of {wanted:,} {result.fault.unit}, "
        line += f"{len(result.violations)} violations"
        sys.stderr.write(f"\r\033[K{line}" if self._is_live else f"{line}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._is_live:
            sys.stderr.write("\r\033[K")


def run(fault: Fault, arguments: argparse.Namespace, room: Path, share: float | None, progress: Progress) -> Result:
    """Try one fault, until there was enough of it."""
    count = arguments.count or (fault.small if arguments.small else fault.count)
    seconds = share if share is not None else (None if arguments.small else fault.seconds)
    plan = Plan(room, arguments.seed, count, seconds, arguments.case)
    result = Result(fault)
    try:
        _collect(fault.tries(plan), plan, result, progress, is_timed=seconds is not None)
    except KeyboardInterrupt:
        result.skipped["the rest"] = _INTERRUPTED
    result.seconds = time.monotonic() - plan.began
    progress.end()
    return result


def _collect(cases: Iterator[Case], plan: Plan, result: Result, progress: Progress, *, is_timed: bool) -> None:
    """Until there are enough, or the time is up; of one case that is repeated, all there is."""
    for case in cases:
        if case.skipped:
            result.skipped[case.key] = case.skipped
            continue
        result.tried += case.tries
        if case.note:
            result.notes[case.note] += 1
        if case.problems:
            result.violations.append({"case": case.key, "problems": case.problems})
            _tell(result.fault, plan.seed, case.key, case.problems, len(result.violations))
        progress.show(result, plan.count)
        if plan.is_over() or (result.tried >= plan.count and not is_timed and plan.only is None):
            return


def _tell(fault: Fault, seed: int, key: str, problems: tuple[str, ...], nth: int) -> None:
    if nth > _SHOWN:
        return
    repeat = f"python -m tests.stress --only {fault.name} --seed {seed} --case {shlex.quote(key)}"
    text = "\n    ".join(problem[-1500:] for problem in problems[:_SHOWN])
    sys.stderr.write(f"\r{fault.name}: VIOLATION in case {key}\n    {text}\n    again: {repeat}\n")


def table(results: list[Result]) -> str:
    """For people."""
    rows = [("fault", "how", "tried", "violations", "seconds")]
    for result in results:
        tried = f"{result.tried:,} {result.fault.unit}"
        rows.append((result.fault.name, result.fault.how, tried, str(len(result.violations)), f"{result.seconds:.0f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for result in results:
        lines += [f"{result.fault.name}: {count:,} x {note}" for note, count in sorted(result.notes.items())]
        lines += [f"{result.fault.name}: skipped {key}: {why}" for key, why in sorted(result.skipped.items())]
    return "\n".join(lines)


def _written(results: list[Result], arguments: argparse.Namespace) -> None:
    told = {
        "command": shlex.join(["python", "-m", "tests.stress", *sys.argv[1:]]),
        "seed": arguments.seed,
        "revision": _revision(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.platform()}, {os.cpu_count()} processors, Python {platform.python_version()}",
        "faults": [
            {
                "name": result.fault.name,
                "how": result.fault.how,
                "unit": result.fault.unit,
                "tried": result.tried,
                "seconds": round(result.seconds, 1),
                "violations": result.violations,
                "notes": result.notes,
                "skipped": result.skipped,
            }
            for result in results
        ],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(told, indent=1) + "\n")


def _revision() -> str | None:
    """The commit that is tried, with a + where files differ from it. None: it is not known."""
    described = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(described, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description="The fault suite.")
    parser.add_argument("--minutes", type=float, help="for all faults together; default: as long as the counts take")
    parser.add_argument("--only", default="", help=f"faults, with commas between them: {', '.join(FAULTS)}")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--case", help="repeat this one case, with the seed that was printed")
    parser.add_argument("--small", action="store_true", help="the counts of `make test-full`")
    parser.add_argument("--count", type=int, help="how much of each fault instead")
    parser.add_argument("--output", type=Path, default=Path("build/stress.json"), help="where the raw results go")
    arguments = parser.parse_args()
    arguments.chosen = [name for name in arguments.only.split(",") if name] or list(FAULTS)
    if unknown := sorted(set(arguments.chosen) - set(FAULTS)):
        parser.error(f"no fault is called {', '.join(unknown)}")
    return arguments


def main() -> int:
    """The exit status."""
    arguments = _arguments()
    print(f"seed {arguments.seed}", flush=True)
    share = arguments.minutes * 60 / len(arguments.chosen) if arguments.minutes else None
    progress, results = Progress(), []
    with ExitStack() as stack:
        # In memory: a sync costs nothing there, and what a disk may lose is worked out, not waited for.
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stress-", dir=shared)))
        for name in arguments.chosen:
            place = room / name
            place.mkdir()
            results.append(run(FAULTS[name], arguments, place, share, progress))
            _written(results, arguments)
            if "the rest" in results[-1].skipped:
                break
    print(table(results))
    violated = sum(len(result.violations) for result in results)
    print(f"{violated} violations; seed {arguments.seed}; raw results in {arguments.output}")
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
