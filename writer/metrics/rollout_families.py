"""Guarded rollouts as metric families. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from dspy_registry.registry_store.rollout import Rollout


def families(rollouts: Iterable[Rollout]) -> Iterator[Metric]:
    """The last rollout of each label: its state, and the new version's share now."""
    states = GaugeMetricFamily(
        "dspy_registry_rollout",
        "1 for the state of the last rollout of a label.",
        labels=("module", "label", "version", "state"),
    )
    shares = GaugeMetricFamily(
        "dspy_registry_rollout_share",
        "Share of the calls that a rollout gives the new version, 0 to 1.",
        labels=("module", "label", "version"),
    )
    for rollout in rollouts:
        of = rollout.name, rollout.label, str(rollout.new)
        states.add_metric((*of, rollout.state), 1)
        shares.add_metric(of, rollout.weights.get(rollout.new, 0.0) / 100)
    yield from (states, shares)
