"""The demo: its stages one after the other, then the end of everything they started. `load` has the largest stage."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from dspy_registry.cli import console
from dspy_registry.demo.load import read_under_load
from dspy_registry.demo.outage import go_on_without_a_provider
from dspy_registry.demo.processes import Daemon, Demo, DemoError, Witness, problems, show
from dspy_registry.writer.client.client import WriterClient
from dspy_registry.writer.core_modules import CORE_MODULES

MODULE: Final = "acme.Digest"
ALIAS: Final = "digest"
PATTERN: Final = "dspy.Bootstrap*"
FILE: Final = "acme.toml"
MANIFEST: Final = f"""\
[[modules]]
name = "{MODULE}"
category = "prediction"
capabilities = ["summarisation", "reasoning"]
requirements = {{memory = "medium", compute = "low"}}
estimated_duration = 400

[aliases]
{ALIAS} = "{MODULE}"

[[defaults]]
match = "{PATTERN}"
estimated_duration = 60000
"""
WITH_MISTAKE: Final = MANIFEST.replace('"medium"', '"lots"')
CORRECTED: Final = MANIFEST.replace("= 400", "= 350")
SECONDS_TO_SHOW: Final = 30.0
SECONDS_TO_RUN: Final = 60.0
PROGRAM: Final = "acme.py"
_RUN_PROGRAM: Final = "import sys; sys.path.insert(0, ''); import acme; acme.main(sys.argv[1])"
_ROUTED: Final = (
    ("dspy.ChainOfThought", 500, True),
    ("dspy.ColBERTv2", 5_000, False),
    ("dspy.Predict", 500, True),
    ("dspy.MIPROv2", 20_000, False),
)
"""(module, input size in characters, optimize latency)"""
_USAGE_SHOWN: Final = ("name", "calls", "errors", "error_rate", "overall", "durations")
"""The part of a module's statistics that --json prints."""


# Daemon, discovery, routing


def start_daemon(demo: Demo) -> None:
    """A registry with the core modules, and its writer in a separate process."""
    demo.manifests.mkdir()
    daemon = Daemon(demo.registry, demo.manifests, demo.folder)
    demo.stack.callback(daemon.close)
    daemon.wait_until_ready()
    demo.client = demo.stack.enter_context(WriterClient(demo.registry))
    demo.facts["daemon_pid"] = daemon.pid
    demo.title(f"Writer daemon {daemon.pid} serves {demo.registry}")
    demo.say(f"  it begins with {len(CORE_MODULES)} core modules\n")


def discover_dspy(demo: Demo) -> None:
    """Register what the installed DSPy has."""
    from dspy_registry.writer.discovery.report import discover

    demo.title("Discovery looks through the installed DSPy")
    with console.spinner("importing dspy in a separate process", quiet=demo.quiet):
        report = discover(timeout=60)
        outcome = demo.client.apply_discovery(report)
    demo.steady = list(dict.fromkeys((*demo.steady, *outcome.declared)))
    demo.facts["discovery"] = {"dspy_version": report.dspy_version, "modules": len(report.modules)}
    if report.dspy_version is None:
        demo.say(
            "  DSPy is not installed here (pip install 'dspy-module-registry[dspy]'): going on with the core modules\n"
        )
    else:
        demo.say(f"  DSPy {report.dspy_version}: {len(report.modules)} modules, as of revision {outcome.revision}\n")


def recommend(demo: Demo) -> None:
    """Show a few routing recommendations."""
    demo.title("What the registry recommends to a router")
    demo.facts["recommendations"] = []
    for name, size, latency in _ROUTED:
        options = ["--input-size", str(size), *(["--optimize-latency"] if latency else [])]
        route = demo.ask("route", name, *options)
        context = f"{{input_size: {size}, optimize_latency: {str(latency).lower()}}}"
        demo.facts["recommendations"].append({**route, "input_size": size, "optimize_latency": latency})
        demo.say(f'  routing_recommendation("{name}", {context})')
        demo.say(
            f"    {{pool_type: {route['pool_type']}, timeout: {route['timeout']},"
            f" prefer_native: {str(route['prefer_native']).lower()}, estimated_cost: {route['estimated_cost']:g}}}"
        )
    demo.say()


# Manifests: one is saved, saved with a mistake, and corrected, while the daemon follows its folder


def follow_manifests(demo: Demo) -> None:
    """Show the way from a saved file to what a reader sees, with a mistake on the way."""
    demo.title(f"The daemon follows the manifests in {demo.manifests}")
    with closing(Witness(demo.registry, demo.folder, demo.client.status().revision)) as witness:
        witness.wait_until_ready()
        visible_after = _save(demo, MANIFEST, witness)
        demo.say(f"  {FILE} is saved: a reader process sees it {visible_after} ms later")
        declared, matched = _declared(demo), _matched(demo)
        errors = _save_mistake(demo, declared)
        corrected_after = _save(demo, CORRECTED, witness)
    _wait_for_errors(demo, lambda errors: not errors)
    demo.say(f"  corrected: a reader process sees it {corrected_after} ms later, and no error is left\n")
    demo.facts["manifests"] = {
        "visible_after_ms": visible_after,
        "declared": declared,
        "matched": matched,
        "errors": errors,
        "corrected_after_ms": corrected_after,
    }


def _save(demo: Demo, text: str, witness: Witness) -> float:
    """Save the manifest; milliseconds until a reader has seen the module change."""
    (demo.manifests / FILE).write_text(text, encoding="utf-8")
    saved = time.perf_counter()
    witness.wait_for(MODULE)
    return round((time.perf_counter() - saved) * 1000, 1)


def _declared(demo: Demo) -> dict[str, Any]:
    """The module, as a reader finds it by its alias."""
    found: dict[str, Any] = demo.ask("get", ALIAS)
    demo.say(f"    {ALIAS} is {found['name']}: {', '.join(found['capabilities'])}, {found['estimated_duration']} ms")
    if found["name"] != MODULE:
        demo.failures.append(f"the alias {ALIAS} leads to {found['name']}")
    return found


def _matched(demo: Demo) -> dict[str, Any] | None:
    """A discovered module that the rule applies to; None when there is none, as without DSPy."""
    name = next((name for name in demo.steady if fnmatchcase(name, PATTERN)), None)
    if name is None:
        demo.say(f"    the rule for {PATTERN} will apply once modules are discovered")
        return None
    found = demo.ask("get", name, "--explain")
    duration, source = found["estimated_duration"], found["explained"]["estimated_duration"]
    demo.say(f"    {name}: estimated_duration {duration} ms, from {source}")
    if source != f"defaults:{FILE}":
        demo.failures.append(f"{name} has its estimated_duration from {source}, not from the rule for {PATTERN}")
    return {"name": name, "estimated_duration": duration, "source": source}


def _save_mistake(demo: Demo, before: dict[str, Any]) -> list[Any]:
    """Save the manifest with a mistake, check that it changes nothing, and return the errors that `status` shows."""
    (demo.manifests / FILE).write_text(WITH_MISTAKE, encoding="utf-8")
    errors = _wait_for_errors(demo, bool)
    demo.say("  saved with a mistake: `dspy-registry status` says")
    for line in problems(demo.registry, demo.folder):
        if line.startswith("manifests.errors"):
            demo.say(f"    {line}")
    after = demo.ask("get", ALIAS)
    if after != before:
        demo.failures.append(f"a manifest with an error changed {before} to {after}")
    provenance = after["provenance"]
    demo.say(f"    what it declared stays: version {provenance['version']}, of revision {provenance['revision']}")
    return errors


def _wait_for_errors(demo: Demo, is_expected: Callable[[list[Any]], bool]) -> list[Any]:
    """The manifests' errors in the daemon's status, once they are as expected. Raises DemoError."""
    deadline = time.monotonic() + SECONDS_TO_SHOW
    while time.monotonic() < deadline:
        errors: list[Any] = demo.client.status().sections["manifests"]["errors"]
        if is_expected(errors):
            return errors
        time.sleep(0.02)
    raise DemoError(f"after {SECONDS_TO_SHOW:.0f} s the daemon's status has these errors of manifests: {errors}")


# Usage: a DSPy program reports its calls


def observe(demo: Demo) -> None:
    """Compare what a DSPy program reports of its modules with what was declared of them."""
    demo.title("A DSPy program in a separate process reports what its modules do")
    demo.facts["usage"] = None
    if importlib.util.find_spec("dspy") is None:
        demo.say("  skipped: DSPy is not installed here (pip install 'dspy-module-registry[dspy]')")
        return
    with console.spinner("the program runs", quiet=demo.quiet):
        reported = _run_program(demo)
    found = demo.ask("stats")["usage"]
    demo.failures += _miscounts(reported, found)
    size = str(reported["characters"])
    routes = {
        basis: demo.ask("route", MODULE, "--input-size", size, "--basis", basis) for basis in ("declared", "observed")
    }
    modules = [{key: usage[key] for key in _USAGE_SHOWN} for usage in found]
    demo.facts["usage"] = {"program": reported, "modules": modules, **routes}
    _tell_usage(demo, reported, routes)


def _tell_usage(demo: Demo, reported: dict[str, Any], routes: dict[str, Any]) -> None:
    calls, errors = reported["calls"], reported["errors"]
    demo.say(f"  it called {MODULE} {calls} times, and {errors} calls failed; `dspy-registry stats` says")
    if not demo.quiet:
        show(demo.registry, demo.folder, "stats")
    demo.say(f"  what a router is told of {MODULE} for an input of {reported['characters']} characters")
    for basis, route in routes.items():
        demo.say(f"    --basis {basis}: {{timeout: {route['timeout']}, estimated_cost: {route['estimated_cost']:.3g}}}")


def _run_program(demo: Demo) -> dict[str, Any]:
    """What the program prints of itself at its end. Raises DemoError."""
    folder = demo.folder / "program"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name(PROGRAM), folder)
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", **os.environ, "DSPY_CACHEDIR": str(folder)}
    command = [sys.executable, "-c", _RUN_PROGRAM, str(demo.registry)]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS_TO_RUN
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"the DSPy program did not end within {SECONDS_TO_RUN:.0f} s") from error
    if done.returncode:
        stderr = done.stderr.strip().splitlines()
        raise DemoError(f"the DSPy program: {stderr[-1] if stderr else f'ended with status {done.returncode}'}")
    reported: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return reported


def _miscounts(reported: dict[str, Any], found: list[dict[str, Any]]) -> list[str]:
    """Calls that a reader does not see, although the daemon has acknowledged the program's statistics."""
    expected = reported["calls"], reported["errors"]
    counted = next(((usage["calls"], usage["errors"]) for usage in found if usage["name"] == MODULE), (0, 0))
    if counted == expected:
        return []
    return ["{}: {} calls and {} errors were reported, a reader sees {} and {}".format(MODULE, *expected, *counted)]


# One stage after the other


STAGES: Final[tuple[Callable[[Demo], None], ...]] = (
    start_daemon,
    discover_dspy,
    follow_manifests,
    read_under_load,
    recommend,
    observe,
    go_on_without_a_provider,
)


def run(seconds: float, readers: int, *, as_json: bool) -> int:
    """Run all stages, with `readers` reader processes for `seconds`; the exit status."""
    with _signals() as ignore_signals, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dspy-demo-")))
        demo = Demo(stack, folder, seconds, readers, quiet=as_json)
        try:
            for stage in STAGES:
                stage(demo)
        finally:
            ignore_signals()  # nothing may keep the stack from ending what was started
    demo.facts["failures"] = demo.failures
    if as_json:
        console.print_json(demo.facts)
    for failure in demo.failures:
        console.print_error("DemoError", failure, as_json=as_json)
    return 1 if demo.failures else 0


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and SIGHUP interrupt as Ctrl-C does. The function that is yielded ignores all three from then on."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, signal.default_int_handler) for number in numbers}

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    try:
        yield ignore
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
