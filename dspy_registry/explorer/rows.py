"""One row of the page of modules: a module, how it is used, and what is advised for the next call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dspy_registry.readers.snapshot import Snapshot
from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.health_file import HealthEntry

NOTABLE, ALARMING = 0.01, 0.1
_CAPABILITIES: Final = 12


def row(snapshot: Snapshot, name: str, health: Mapping[str, list[HealthEntry]]) -> dict[str, Any]:
    """Plain values for JSON and the page. Durations in milliseconds, times in milliseconds since the epoch."""
    usage = snapshot.usage(name) if name in snapshot else None
    if usage is None:
        return _unregistered(snapshot, name)
    stored = snapshot.describe(name)
    info = stored.info
    routed = snapshot.routing_recommendation(name, basis="auto")
    in_force = snapshot.usage(name, stored.provenance.version)
    standing = in_force.standing.get("normal")
    entries = health.get(name, [])
    return {
        "name": name,
        "registered": True,
        "version": stored.provenance.version,
        "source": stored.provenance.source,
        "overrides": list(snapshot.overridden(name)),
        "category": info.category,
        "capabilities": list(info.capabilities[:_CAPABILITIES]),
        "pool_type": info.pool_type,
        **_usage(usage),
        "declared_ms": info.estimated_duration,
        "observed_ms": round(standing.p50, 1) if standing is not None and standing.completed else None,
        "limit_ms": routed.timeout,
        "health": [{"version": entry.version, "state": entry.state, "until": entry.until} for entry in entries],
    }


def _unregistered(snapshot: Snapshot, name: str) -> dict[str, Any]:
    """A name that calls were reported under and no module has."""
    return {"name": name, "registered": False, **_usage(snapshot.usage(name))}


def _usage(usage: Any) -> dict[str, Any]:
    seen = usage.overall
    return {
        "calls": usage.calls,
        "errors": usage.errors,
        "error_rate": usage.error_rate,
        "p50_ms": round(seen.p50, 2) if seen.calls else None,
        "p99_ms": round(seen.p99, 2) if seen.calls else None,
        "calls_by_minute": list(usage.calls_by_minute()),
        "errors_by_minute": list(usage.errors_by_minute()),
        "last_used": usage.last_used or None,
    }


def rows(snapshot: Snapshot, names: list[str], entries: list[HealthEntry]) -> list[dict[str, Any]]:
    """Rows of these names. One that cannot be read is a row with its `error`: it must not hide the others."""
    health: dict[str, list[HealthEntry]] = {}
    for entry in entries:
        health.setdefault(entry.name, []).append(entry)
    found = []
    for name in names:
        try:
            found.append(row(snapshot, name, health))
        except RegistryError as error:
            found.append({"name": name, "registered": True, "error": error.message})
    return found


def alarm(rate: float | None) -> str:
    """How much a failing share matters: "", "notable" or "alarming"."""
    if rate is None or rate < NOTABLE:
        return ""
    return "alarming" if rate >= ALARMING else "notable"
