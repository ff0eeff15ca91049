"""`demo`: all parts at work, on real input, in a temporary registry."""

from __future__ import annotations

import os
from typing import Final

import click

from dspy_registry.cli import console
from dspy_registry.cli.numbers import Number, Whole

MIN_READERS: Final = 2
MAX_SECONDS: Final = 24 * 3600.0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MAX_READERS: Final = max(64, 8 * _cores())


@click.command("demo", short_help="See it at work: a daemon, manifests, readers under load, live updates, statistics.")
@click.option("--seconds", type=Number(0.5, MAX_SECONDS), default=8.0, show_default=True, help="How long to read.")
@click.option("--readers", type=Whole(1, MAX_READERS), metavar="N", help="Reader processes. Default: one per core.")
@console.json_option
def demo(seconds: float, readers: int | None, as_json: bool) -> int:
    """See the registry at work, in a temporary folder that is removed afterwards.

    The demo starts a writer daemon and discovers the installed DSPy. It saves a manifest, saves it with a mistake,
    and corrects it. Then reader processes look up and route as fast as they can, while a client keeps updating
    modules through the daemon. A read is stale if it misses an update that was acknowledged before the read began.
    Last, if DSPy is installed, a DSPy program reports its calls, and routing uses their durations.
    Exits with 1 when there was a stale read or an error.
    """
    from dspy_registry.demo.stages import run

    return run(seconds, readers or max(MIN_READERS, _cores()), as_json=as_json)
