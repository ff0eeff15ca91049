"""The demo's stages, one after the other, and the end of everything they started."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from dspy_registry.cli import console
from dspy_registry.demo.load import read_under_load
from dspy_registry.demo.manifests import follow_manifests
from dspy_registry.demo.process import Daemon, ask
from dspy_registry.demo.stage import Demo
from dspy_registry.demo.usage import observe
from dspy_registry.writer.client.client import WriterClient
from dspy_registry.writer.core_modules import CORE_MODULES

_ROUTED: Final = (
    ("dspy.ChainOfThought", 500, True),
    ("dspy.ColBERTv2", 5_000, False),
    ("dspy.Predict", 500, True),
    ("dspy.MIPROv2", 20_000, False),
)
"""(module, input size in characters, optimize latency)"""


def run(seconds: float, readers: int, *, as_json: bool) -> int:
    """All stages; the exit status."""
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


# Stages


def start_daemon(demo: Demo) -> None:
    """A registry with the core modules, and its writer as a process of its own."""
    demo.manifests.mkdir()
    daemon = Daemon(demo.registry, demo.manifests, demo.folder)
    demo.stack.callback(daemon.close)
    daemon.wait_until_ready()
    demo.client = demo.stack.enter_context(WriterClient(demo.registry))
    demo.facts["daemon_pid"] = daemon.process.pid
    demo.title(f"Writer daemon {daemon.process.pid} serves {demo.registry}")
    demo.say(f"  it begins with {len(CORE_MODULES)} core modules\n")


def discover_dspy(demo: Demo) -> None:
    """What the installed DSPy has."""
    from dspy_registry.writer.discovery.report import discover

    demo.title("Discovery looks through the installed DSPy")
    with console.spinner("importing dspy in a process of its own", quiet=demo.quiet):
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
    """A few recommendations, as the registry gives them now."""
    demo.title("What a router is told")
    demo.facts["recommendations"] = []
    for name, size, latency in _ROUTED:
        options = ["--input-size", str(size), *(["--optimize-latency"] if latency else [])]
        told = ask(demo.registry, demo.folder, "route", name, *options)
        context = f"{{input_size: {size}, optimize_latency: {str(latency).lower()}}}"
        demo.facts["recommendations"].append({**told, "input_size": size, "optimize_latency": latency})
        demo.say(f'  routing_recommendation("{name}", {context})')
        demo.say(
            f"    {{pool_type: {told['pool_type']}, timeout: {told['timeout']},"
            f" prefer_native: {str(told['prefer_native']).lower()}, estimated_cost: {told['estimated_cost']:g}}}"
        )
    demo.say()


STAGES: Final[tuple[Callable[[Demo], None], ...]] = (
    start_daemon,
    discover_dspy,
    follow_manifests,
    read_under_load,
    recommend,
    observe,
)


# Ending


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Any request to end is one to end as Ctrl-C does; the function that is yielded ignores them from then on."""
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
