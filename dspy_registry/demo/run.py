"""The demo: its stages one after the other, then the end of everything they started."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from dspy_registry.cli import console
from dspy_registry.demo.load import read_under_load
from dspy_registry.demo.stages import Demo, discover_dspy, follow_manifests, observe, recommend, start_daemon

STAGES: Final[tuple[Callable[[Demo], None], ...]] = (
    start_daemon,
    discover_dspy,
    follow_manifests,
    read_under_load,
    recommend,
    observe,
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
