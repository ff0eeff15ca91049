"""What one watcher is told of a change: what concerns the names that it watches, and the new records if it wants."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase, translate

import msgspec

from dspy_registry.readers.snapshot import Snapshot
from dspy_registry.registry_store.arguments import words_of
from dspy_registry.registry_store.changes import Change
from dspy_registry.registry_store.records import StoredModule

_POOL = "pool:"


class ChangeWithRecords(Change, frozen=True, array_like=True, gc=False):
    """A change, and under their full names the records that it made.

    One is missing if the module is damaged, or the version is kept no longer: then a later change tells a newer one.
    """

    records: dict[str, StoredModule] = msgspec.field(default_factory=dict)


class Watched:
    """The names that are watched, as patterns. None: all."""

    def __init__(self, names: str | Iterable[str] | None, records: bool) -> None:
        self._patterns = None if names is None else words_of("names", names)
        self._regexes = [re.compile(translate(pattern)) for pattern in self._patterns or ()]
        self._records = records

    def told(self, change: Change, snapshot: Snapshot) -> Change | None:
        """The change as this watcher is told of it. None: it does not concern it. The snapshot is not older."""
        kept = change if self._patterns is None or change.everything else self._concerning(change)
        if kept is None or not self._records:
            return kept
        made = ((module.name, module.version) for module in kept.modules if module.action != "unregistered")
        records = {name: snapshot.version_record(name, version) for name, version in made}
        found = {name: record for name, record in records.items() if record is not None}
        return ChangeWithRecords(**msgspec.structs.asdict(kept), records=found)

    def _concerning(self, change: Change) -> Change | None:
        modules = tuple(module for module in change.modules if self._is_watched(module.name))
        labels = tuple(label for label in change.labels if self._is_watched(label.name))
        overrides = tuple(name for name in change.overrides if self._is_watched(name))
        policies = tuple(pattern for pattern in change.policies if self._may_concern(pattern))
        aliases = tuple(
            alias
            for alias in change.aliases
            if any(name is not None and self._is_watched(name) for name in (alias.alias, alias.old, alias.new))
        )
        if not (modules or labels or overrides or policies or aliases):
            return None
        return msgspec.structs.replace(
            change,
            modules=modules,
            labels=labels,
            overrides=overrides,
            policies=policies,
            aliases=aliases,
            keys=tuple(key for key in change.keys if self._is_watched(key)),
            terms=(),
        )

    def _is_watched(self, name: str) -> bool:
        return any(regex.match(name) for regex in self._regexes)

    def _may_concern(self, policy: str) -> bool:
        """Whether the modules of a policy's pattern may be watched: rather once too often."""
        if policy.startswith(_POOL) or self._is_watched(policy):
            return True
        return any(fnmatchcase(pattern, policy) for pattern in self._patterns or ())
