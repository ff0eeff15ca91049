"""`demo`: the whole of it at work, on real input, in a temporary registry."""

from __future__ import annotations

import math
import os
from typing import Any, Final

import click

from dspy_registry.cli import console

FEWEST_READERS: Final = 2
LONGEST_SECONDS: Final = 24 * 3600.0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MOST_READERS: Final = max(64, 8 * _cores())


class _Seconds(click.FloatRange):
    """A range, and a number: "nan" lies in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail("it is not a number.", param, ctx)
        return seconds


_DURATION: Final = _Seconds(0.5, LONGEST_SECONDS)
_READERS: Final = click.IntRange(1, MOST_READERS)


@click.command("demo", short_help="See it at work: a daemon, manifests, readers under load, live updates, statistics.")
@click.option(
    "--seconds", type=_Seconds(0.5, LONGEST_SECONDS), default=8.0, show_default=True, help="How long to read."
)
@click.option(
    "--readers", type=click.IntRange(1, MOST_READERS), metavar="N", help="Reader processes. Default: one per core."
)
@console.json_option
def demo(seconds: float, readers: int | None, as_json: bool) -> int:
    """See the registry at work, on one of its own that is removed afterwards.

    A writer daemon is started, the installed DSPy is discovered, a manifest is saved, spoilt and mended, and
    reader processes look up and route as fast as they can while a client keeps updating modules through the
    daemon. Every read that could tell is checked: one older than an update acknowledged before it began is
    stale. At last a DSPy program reports its calls, if DSPy is installed, and a router is told what they took.
    Exits with 1 when there was a stale read or an error.
    """
    from dspy_registry.demo.run import run

    return run(seconds, readers or max(FEWEST_READERS, _cores()), as_json=as_json)
