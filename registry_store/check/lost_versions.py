"""Versions that the change log names and the history lacks.

Where the oldest rows of a module are missing, those that are left have no gap: only the log can tell. A repaired
registry begins a new log, so what a repair could not save is not told again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress

from dspy_registry.registry_store.changes import Change, change_codec
from dspy_registry.registry_store.check.inspection import HISTORY, Head, Violation
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.layout import HISTORY_VERSIONS, versioned_key


def lost_versions(head: Head) -> Iterator[Violation]:
    """What is missing of the last versions before the one in force."""
    for name, versions in _logged(head).items():
        stored = head.module(name)
        if stored is None:
            continue
        current = stored.provenance.version
        for version in sorted(versions & set(range(current - HISTORY_VERSIONS, current))):
            if head.txn.get(versioned_key(name, version), None, head.dbs.history) is None:
                yield Violation(HISTORY, f"history/{name}", f"lacks version {version}, which the change log names")


def _logged(head: Head) -> dict[str, set[int]]:
    """The versions that the log says were made, by name. Damaged entries are told by the section on changes."""
    found: dict[str, set[int]] = defaultdict(set)
    for key, value in head.rows(head.dbs.changes):
        with suppress(CorruptRecordError):
            change: Change = change_codec.load(value, key, head.dbs.format)
            for module in change.modules:
                if module.action != "unregistered":
                    found[module.name].add(module.version)
    return found
