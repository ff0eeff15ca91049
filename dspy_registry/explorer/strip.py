"""The strip above every page: what an engineer on call looks at first. Pure, but for the clock that it is given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

_ERRORS_SHOWN: Final = 5
_NAMES_SHOWN: Final = 20
_BEHIND: Final = 100
"""Transactions. A snapshot that is further behind is a laggard, as for the daemon's log."""


def strip(facts: dict[str, Any], revision: int, committed_at: int, health: Iterable[Any]) -> dict[str, Any]:
    """The strip's fields. `facts` is what `Watched.facts` gives; `committed_at` is in milliseconds since the epoch.

    The daemon alone knows the counts of manifest errors and overrides. They are None while no daemon answers.
    """
    daemon = facts["daemon"]
    manifests = _section(daemon, "manifests")
    errors = manifests.get("errors") or []
    readers = (facts["registry"] or {}).get("readers") or []
    circuits = list(health)
    overrides = manifests.get("overrides") or []
    return {
        "daemon": {"up": daemon is not None, "pid": daemon and daemon["pid"], "why": _why(facts)},
        "seen_at": facts["seen_at"],
        "revision": revision,
        "committed_at": committed_at,
        "manifest_errors": errors[:_ERRORS_SHOWN],
        "manifest_error_count": len(errors) if daemon else None,
        "manifest_error": manifests.get("error"),
        "overrides": overrides[:_NAMES_SHOWN],
        "override_count": len(overrides) if daemon else None,
        "circuits": circuits[:_NAMES_SHOWN],
        "circuit_count": len(circuits),
        "cluster": _cluster(_section(daemon, "cluster")),
        "laggards": [reader for reader in readers if reader["behind"] >= _BEHIND][:_NAMES_SHOWN],
        "problems": facts["problems"],
    }


def _section(daemon: dict[str, Any] | None, name: str) -> dict[str, Any]:
    found = daemon["sections"].get(name) if daemon else None
    return found if isinstance(found, dict) else {}


def _cluster(section: dict[str, Any]) -> dict[str, Any] | None:
    """What the strip tells of the cluster. None: this registry follows none."""
    if not section:
        return None
    fields = ("cluster", "applied", "newest", "lag_seconds", "conflicts", "reconnects", "leads", "error")
    aside = section.get("set_aside") or {}
    return {
        **{field: section.get(field) for field in fields},
        "host_count": len(section.get("hosts") or {}),
        "set_aside": dict(list(aside.items())[:_ERRORS_SHOWN]),
        "set_aside_count": section.get("errors") or 0,
    }


def _why(facts: dict[str, Any]) -> str:
    if facts["daemon"] is not None:
        return ""
    unreachable = facts["unreachable"] or {}
    if unreachable.get("type") in (None, "WriterUnavailableError"):
        return "no daemon answers; what is shown is what was committed last"
    return f"{unreachable['message']} {unreachable['remedy']}".strip()
