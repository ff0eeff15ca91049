"""What one commit changed, gathered while it is made, and its entry in the change log."""

from __future__ import annotations

from collections.abc import Iterable

from dspy_registry.registry_store.changes import LARGEST_LISTED_CHANGE, AliasChange, Change, LabelChange, ModuleChange
from dspy_registry.registry_store.names import lookup_keys
from dspy_registry.registry_store.records import By
from dspy_registry.writer.aliases import DAMAGED
from dspy_registry.writer.catalog import Catalog


class LogEntry:
    """Changes in the order in which they were noted. `keys` are strings that may mean something else now.

    `past` are modules of which a version that is not in force is another one now.
    """

    def __init__(self) -> None:
        self.modules: list[ModuleChange] = []
        self.aliases: list[AliasChange] = []
        self.labels: list[LabelChange] = []
        self.overrides: list[str] = []
        self.patterns: dict[str, None] = {}
        self.past: dict[str, None] = {}
        self.keys: dict[str, None] = {}

    def __bool__(self) -> bool:
        """Whether a reader can see any of it."""
        return bool(self.modules or self.keys or self.labels or self.patterns or self.past)

    def change(self, revision: int, now: int, by: Iterable[By], terms: Iterable[str], catalog: Catalog) -> Change:
        """The entry. `catalog` is the registry before it; a change too large to list says that everything changed."""
        requesters = tuple(by)
        if len(self.modules) > LARGEST_LISTED_CHANGE or len(self.labels) > LARGEST_LISTED_CHANGE:
            return Change(revision, now, everything=True, by=requesters)
        for module in self.modules:
            self._add_keys(module.name, catalog)
        for label in self.labels:
            self._add_keys(label.name, catalog)
        for name in self.past:
            self._add_keys(name, catalog)
        return Change(
            revision,
            now,
            tuple(self.modules),
            tuple(self.keys),
            tuple(terms),
            by=requesters,
            policies=tuple(self.patterns),
            labels=tuple(self.labels),
            overrides=tuple(self.overrides),
            aliases=tuple(self.aliases[:LARGEST_LISTED_CHANGE]),
        )

    def _add_keys(self, name: str, catalog: Catalog) -> None:
        for key in lookup_keys(name):
            self.keys[key] = None
        # A damaged alias may have meant any module, and a reader may still have it cached.
        for alias in (*catalog.aliases_of(name), *catalog.aliases_of(DAMAGED.name)):
            self.keys[alias] = None
