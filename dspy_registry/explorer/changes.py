"""Changes as JSON, and the newest of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from dspy_registry.readers.snapshot import Snapshot
from dspy_registry.registry_store.buckets import BUCKETS
from dspy_registry.registry_store.changes import Change, shown_requester

SHOWN: Final = 100
_LISTED: Final = 200
"""Modules of one change that are listed; a change may name thousands."""
_PARTS: Final = ("modules", "aliases", "labels", "policies", "overrides")


def plain(change: Change) -> dict[str, Any]:
    """A change for JSON. `more` counts what is left out of its lists."""
    modules, aliases = change.modules, change.aliases
    lengths = [len(getattr(change, part)) for part in _PARTS]
    return {
        "revision": change.revision,
        "committed_at": change.committed_at,
        "everything": change.everything,
        "modules": [{**msgspec.structs.asdict(each), "by": shown_requester(each.by)} for each in modules[:_LISTED]],
        "aliases": [{**msgspec.structs.asdict(each), "by": shown_requester(each.by)} for each in aliases[:_LISTED]],
        "labels": [
            {"name": each.name, "label": each.label, "old": shares(each.old), "new": shares(each.new)}
            for each in change.labels[:_LISTED]
        ],
        "policies": list(change.policies[:_LISTED]),
        "overrides": list(change.overrides[:_LISTED]),
        "by": [shown_requester(each) for each in change.by[:_LISTED]],
        "more": sum(max(0, length - _LISTED) for length in lengths),
    }


def unlisted(change: dict[str, Any], shown: int) -> int:
    """How many parts of a plain change are left out by a page that lists `shown` of each kind."""
    return int(change["more"]) + sum(max(0, len(change[part]) - shown) for part in _PARTS)


def shares(named: Iterable[tuple[int, int]]) -> dict[str, float]:
    """What a label names: the share of each version in percent, by version as text. {}: nothing."""
    return {str(version): 100 * count / BUCKETS for version, count in named}


def newest(snapshot: Snapshot, count: int = SHOWN) -> list[dict[str, Any]]:
    """The last `count` changes, newest first, with at most as many modules in all as one page can show."""
    found = []
    room = 4 * _LISTED
    for change in reversed(snapshot.changes_since(max(0, snapshot.revision - count))):
        shown = plain(change)
        room -= len(shown["modules"]) + len(shown["aliases"])
        if room < 0:
            break
        found.append(shown)
    return found
