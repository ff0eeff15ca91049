"""How long commits take, and how many requests share one: counted as they happen."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Histogram

from dspy_registry.writer.daemon.group_commit import Committed

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_REQUESTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class CommitFigures:
    """Histograms since the daemon began."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._commits = Histogram(
            "dspy_registry_commit_duration_seconds",
            "Time of one group commit: staging, writing and sync.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._syncs = Histogram(
            "dspy_registry_sync_duration_seconds",
            "Time that LMDB took to make a commit durable.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._groups = Histogram(
            "dspy_registry_commit_group_requests",
            "Requests that shared one commit.",
            buckets=_REQUESTS,
            registry=registry,
        )

    def observe(self, committed: Committed) -> None:
        """Count one commit."""
        self._commits.observe(committed.seconds)
        self._syncs.observe(committed.sync_seconds)
        self._groups.observe(committed.requests)
