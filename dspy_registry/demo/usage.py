"""The stage in which a DSPy program reports its calls, and a router is told what they took."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from dspy_registry.cli import console
from dspy_registry.demo.manifests import MODULE
from dspy_registry.demo.process import DemoError, ask, show
from dspy_registry.demo.stage import Demo

SECONDS_TO_RUN: Final = 60.0
PROGRAM: Final = "acme.py"
_START: Final = "import sys; sys.path.insert(0, ''); import acme; acme.main(sys.argv[1])"
_TOLD: Final = ("name", "calls", "errors", "error_rate", "overall", "durations")
"""Of a module's statistics, what --json prints."""


def observe(demo: Demo) -> None:
    """What a real program shows of its modules, beside what was declared of them."""
    demo.title("A DSPy program in a process of its own reports what its modules do")
    demo.facts["usage"] = None
    if importlib.util.find_spec("dspy") is None:
        demo.say("  skipped: DSPy is not installed here (pip install 'dspy-module-registry[dspy]')")
        return
    with console.spinner("the program runs", quiet=demo.quiet):
        made = _run_program(demo)
    found = ask(demo.registry, demo.folder, "stats")["usage"]
    demo.failures += _miscounts(made, found)
    routed = {basis: _route(demo, made["characters"], basis) for basis in ("declared", "observed")}
    modules = [{key: usage[key] for key in _TOLD} for usage in found]
    demo.facts["usage"] = {"program": made, "modules": modules, **routed}
    _tell(demo, made, routed)


def _tell(demo: Demo, made: dict[str, Any], routed: dict[str, Any]) -> None:
    demo.say(
        f"  it called {MODULE} {made['calls']} times, of which {made['errors']} failed; `dspy-registry stats` says"
    )
    if not demo.quiet:
        show(demo.registry, demo.folder, "stats")
    demo.say(f"  what a router is told of {MODULE} for an input of {made['characters']} characters")
    for basis, told in routed.items():
        demo.say(f"    --basis {basis}: {{timeout: {told['timeout']}, estimated_cost: {told['estimated_cost']:.3g}}}")


def _run_program(demo: Demo) -> dict[str, Any]:
    """What the program says of itself when it has ended."""
    folder = demo.folder / "program"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name(PROGRAM), folder)
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", **os.environ, "DSPY_CACHEDIR": str(folder)}
    command = [sys.executable, "-c", _START, str(demo.registry)]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS_TO_RUN
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"the DSPy program was not done after {SECONDS_TO_RUN:.0f} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise DemoError(f"the DSPy program: {said[-1] if said else f'ended with status {done.returncode}'}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _miscounts(made: dict[str, Any], found: list[dict[str, Any]]) -> list[str]:
    """The daemon has acknowledged the program's statistics, so a reader that begins afterwards sees every call."""
    expected = made["calls"], made["errors"]
    counted = next(((usage["calls"], usage["errors"]) for usage in found if usage["name"] == MODULE), (0, 0))
    if counted == expected:
        return []
    return ["{}: {} calls and {} errors were reported, a reader sees {} and {}".format(MODULE, *expected, *counted)]


def _route(demo: Demo, characters: int, basis: str) -> Any:
    return ask(demo.registry, demo.folder, "route", MODULE, "--input-size", str(characters), "--basis", basis)
