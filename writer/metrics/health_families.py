"""What is not healthy, and which limits are in use, as metric families. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dspy_registry.registry_store.circuit import HALF_OPEN, OPEN
from dspy_registry.registry_store.health_file import HealthEntry

_MOST: Final = 500


def families(found: Iterable[HealthEntry]) -> Iterator[Metric]:
    """Circuits that are not closed: how many, and which, at most 500 of them."""
    listed = list(found)
    counts = GaugeMetricFamily("dspy_registry_circuits", "Circuits that are not closed, by state.", labels=("state",))
    for state in (OPEN, HALF_OPEN):
        counts.add_metric((state,), sum(entry.state == state for entry in listed))
    yield counts
    states = GaugeMetricFamily(
        "dspy_registry_circuit_not_closed",
        "1 for each circuit that is open or half-open.",
        labels=("module", "version", "state"),
    )
    openings = CounterMetricFamily(
        "dspy_registry_circuit_openings",
        "Openings of a circuit that is not closed now, since the daemon last forgot it.",
        labels=("module", "version"),
    )
    for entry in listed[:_MOST]:
        states.add_metric((entry.name, str(entry.version), entry.state), 1)
        openings.add_metric((entry.name, str(entry.version)), entry.openings)
    yield from (states, openings)


def limit_families(limits: Iterable[tuple[str, int, int | None]]) -> Iterator[Metric]:
    """Of (key, calls under way, calls allowed; None: no limit any more), at most 500 of them."""
    used = GaugeMetricFamily("dspy_registry_limit_calls", "Calls under way under a limit.", labels=("limit",))
    most = GaugeMetricFamily("dspy_registry_limit_calls_max", "Calls that a limit allows at once.", labels=("limit",))
    for key, calls, allowed in list(limits)[:_MOST]:
        used.add_metric((key,), calls)
        if allowed is not None:
            most.add_metric((key,), allowed)
    yield from (used, most)
