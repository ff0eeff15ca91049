"""Callers' advice straight from the statistics: of one process alone, and of several that report now and then."""

from __future__ import annotations

import time

from dspy_registry import Registry, UsageReporter
from dspy_registry.registry_store.advice import Standing, auto_timeout, default_ceiling, observed_timeout
from dspy_registry.registry_store.evidence import Gathered
from dspy_registry.registry_store.outcome_kinds import TIMEOUT
from dspy_registry.registry_store.recent_calls import Recent
from dspy_registry.registry_store.statistics import Statistics

DECLARED_DURATION = 833.0
DECLARED_TIMEOUT = 1000.0
"""Milliseconds, as a record that declares 833 ms gives it."""


class Alone:
    """A process whose every call is counted in the joint statistics at once."""

    def __init__(
        self, basis: str = "observed", declared: float = DECLARED_TIMEOUT, ceiling: float | None = None
    ) -> None:
        self.statistics = Statistics()
        self.basis = basis
        self.declared = declared
        self.ceiling = default_ceiling(declared) if ceiling is None else ceiling

    def limit_ms(self) -> float:
        return advised(self.statistics.standing(), self.basis, self.declared, self.ceiling)

    def record(self, duration_ms: float, limit_ms: float, timed_out: bool) -> None:
        if timed_out:
            self.statistics.timed_out(limit_ms, self.ceiling)
        else:
            self.statistics.completed(duration_ms)


class Host:
    """The joint statistics of several processes, as a daemon keeps them."""

    def __init__(self, declared: float = DECLARED_TIMEOUT, ceiling: float | None = None) -> None:
        self.statistics = Statistics()
        self.declared = declared
        self.ceiling = default_ceiling(declared) if ceiling is None else ceiling
        self.callers = 0


class Process:
    """A process that reports after every `interval` calls, and sees what was merged of all."""

    def __init__(self, host: Host, interval: int, enough: int = 20) -> None:
        self.host = host
        self.enough = enough
        self._interval = interval
        self._recorded = 0
        self._own = Recent()
        self._gathered = Gathered()

    def limit_ms(self) -> float:
        standing = self.host.statistics.standing().with_own(self._own.longest, self._own.backoff)
        return observed_timeout(standing, self.host.declared, self.host.ceiling, self.enough)

    def record(self, duration_ms: float, limit_ms: float, timed_out: bool) -> None:
        if timed_out:
            self._gathered.timed_out(limit_ms)
            self._own.timed_out(limit_ms, self.host.ceiling)
        else:
            self._gathered.completed(duration_ms)
            self._own.completed(duration_ms)
        self._recorded += 1
        if self._recorded % self._interval == 0:
            self.report()

    def report(self) -> None:
        self.host.callers += self.host.statistics.merge(self._gathered.evidence(), self.host.ceiling)
        self._gathered = Gathered()


def advised(standing: Standing, basis: str, declared: float, ceiling: float) -> float:
    """The limit on this basis, in milliseconds."""
    if basis == "observed":
        return observed_timeout(standing, declared, ceiling)
    return auto_timeout(standing, declared, declared / 1.2, ceiling)


class Asking:
    """A process as it is: it asks a real registry, and tells a real reporter."""

    def __init__(self, registry: Registry, reporter: UsageReporter, name: str, basis: str = "observed") -> None:
        self.registry = registry
        self.reporter = reporter
        self.name = name
        self.basis = basis

    def limit_ms(self) -> float:
        return self.registry.routing_recommendation(self.name, basis=self.basis).timeout

    def record(self, duration_ms: float, limit_ms: float, timed_out: bool) -> None:
        error = TIMEOUT if timed_out else None
        began = time.monotonic()  # the call took no time: its duration is simulated
        self.reporter.record(self.name, duration_ms, not timed_out, error=error, limit_ms=limit_ms, began=began)
