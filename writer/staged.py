"""What a draft holds, and the registry as it leaves it: each look-up sees the changes staged here and below."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from dspy_registry.registry_store.changes import Alias, Implications
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.labels import Label, labelled_versions
from dspy_registry.registry_store.layers import Defaults, Layer
from dspy_registry.registry_store.layout import (
    HISTORY_VERSIONS,
    META_ROLLOUT,
)
from dspy_registry.registry_store.policy import Policy
from dspy_registry.registry_store.records import By, ModuleInfo
from dspy_registry.writer.aliases import StagedAliases, aliases_after
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.entry import Entry


class Staged:
    """Staged changes over the catalog, or over others. `by` asks for them. None: it is not known who does."""

    def __init__(self, catalog: Catalog, parent: Staged | None = None, by: By | None = None) -> None:
        self.catalog = catalog
        self._parent = parent
        self.by = by
        self.authors: dict[By, None] = {} if by is None else {by: None}
        self.changed_by: dict[str, By | None] = {}
        self.modules: dict[str, Entry | None] = {}
        self.dropped: dict[str, tuple[Entry, ...]] = {}
        self.versions: dict[str, dict[int, Entry]] = {}  # that a cluster brought beside those in force, by name
        self.layers: dict[str, dict[str, Layer]] = {}
        self.aliases = StagedAliases()
        self.labels: dict[str, dict[str, Label]] = {}
        self.label_authors: dict[tuple[str, str], By | None] = {}
        self.implications: dict[str, Implications] | None = None
        self.defaults: Defaults | None = None
        self.requests: dict[bytes, Callable[[int], bytes] | None] = {}
        self.usage: dict[bytes, bytes | None] = {}
        self.cluster: dict[bytes, bytes | None] = {}  # rows of global records, by their keys in `meta`
        self.position: bytes | None = None  # how far the cluster is followed; None: as before. b"": no longer
        self.policies: dict[tuple[str, str], Policy | None] = {}
        self.programs: dict[bytes, Sequence[bytes]] = {}
        self.rollouts: dict[bytes, bytes | None] = {}  # by their keys in `meta`
        self.version_floor: Callable[[str], int] = parent.version_floor if parent else _no_floor
        """The last version of a name that was given elsewhere. The next one here is above it."""
        self.next_sequence: int = parent.next_sequence if parent else catalog.state.next_sequence

    @property
    def has_effect(self) -> bool:
        """Whether anything is staged here. What is staged in the parent does not count."""
        is_declared = self.implications is not None or self.defaults is not None
        named = (
            self.modules or self.layers or self.usage or self.aliases or self.labels or self.programs or self.versions
        )
        is_global = bool(self.cluster) or self.position is not None
        return bool(named or self.policies or self.rollouts) or is_declared or is_global

    def remember(self, client: bytes, answers: Callable[[int], bytes] | None) -> None:
        """Store the answers to a client in the commit of their effects. None: forget the client.

        `answers` is called with the revision in which this draft is visible. Stored answers alone make no revision.
        """
        self.requests[client] = answers

    def absorb(self, child: Staged) -> None:
        """Take over all changes of a child."""
        self.modules.update(child.modules)
        self.dropped.update(child.dropped)
        self.changed_by.update(child.changed_by)
        self.authors.update(child.authors)
        for name, versions in child.versions.items():
            self.versions[name] = {**self.versions.get(name, {}), **versions}
        self.layers.update(child.layers)
        self.requests.update(child.requests)
        self.usage.update(child.usage)
        self.cluster.update(child.cluster)
        self.position = child.position if child.position is not None else self.position
        self.policies.update(child.policies)
        self.programs.update(child.programs)
        self.rollouts.update(child.rollouts)
        self.aliases.absorb(child.aliases)
        self.labels.update(child.labels)
        self.label_authors.update(child.label_authors)
        self.implications = child.implications if child.implications is not None else self.implications
        self.defaults = child.defaults if child.defaults is not None else self.defaults
        self.next_sequence = child.next_sequence

    def _with_parents(self) -> Iterator[Staged]:
        """This draft, its parent, and so on."""
        draft: Staged | None = self
        while draft is not None:
            yield draft
            draft = draft._parent

    # The registry as these changes leave it

    def module(self, name: str) -> Entry | None:
        """The module of this full name, or None. Raises CorruptRecordError."""
        if name in self.modules:
            return self.modules[name]
        if self._parent is not None:
            return self._parent.module(name)
        stored = self.catalog.module(name)
        if stored is None:
            return None
        kept = stored.provenance
        given = kept.version, kept.source, kept.sequence, (), kept.by, kept.program, kept.global_revision
        return Entry(stored.info, encode(stored.info), *given)

    def layers_of(self, name: str) -> dict[str, Layer]:
        """The layers of a module, by source."""
        for draft in self._with_parents():
            if name in draft.layers:
                return draft.layers[name]
        return self.catalog.layers(name)

    def cluster_row(self, key: bytes) -> bytes | None:
        """The row of a global record under a key, or None."""
        for draft in self._with_parents():
            if key in draft.cluster:
                return draft.cluster[key]
        return self.catalog.cluster_row(key)

    def cluster_position(self) -> bytes | None:
        """How far the cluster is followed, as stored. None or empty: this registry belongs to none."""
        for draft in self._with_parents():
            if draft.position is not None:
                return draft.position
        return self.catalog.position

    def rollout_rows(self) -> dict[bytes, bytes]:
        """The rows of all rollouts, by their keys in `meta`."""
        below = self._parent.rollout_rows() if self._parent else dict(self.catalog.cluster_rows(META_ROLLOUT))
        return {key: row for key, row in {**below, **self.rollouts}.items() if row is not None}

    def labels_of(self, name: str) -> dict[str, Label]:
        """The labels of a module, by label; a new dict."""
        for draft in self._with_parents():
            if name in draft.labels:
                return dict(draft.labels[name])
        return self.catalog.labels(name)

    def put_labels(self, name: str, labels: dict[str, Label], changed: Iterable[str]) -> None:
        """Replace all labels of a module, of which these are `changed`."""
        self.labels[name] = labels
        for label in changed:
            self.label_authors[name, label] = self.by

    def kept_versions(self, name: str) -> set[int]:
        """The versions of a registered module that can be asked for: in force, in the history's window, or labelled."""
        current = self.module(name)
        if current is None:
            return set()
        newest = current.version
        window = range(max(1, newest - HISTORY_VERSIONS), newest)
        staged = {entry.version for entry in (*self._dropped(name), *current.past)}
        stored = self.catalog.module(name) if self.is_staged(name) else None
        if stored is not None:
            staged.add(stored.provenance.version)
        past = {version for version in window if version in staged or self.catalog.has_version(name, version)}
        return {newest, *past, *labelled_versions(self.labels_of(name).values())}

    def past_version(self, name: str, version: int) -> tuple[ModuleInfo, bytes]:
        """A version of a registered module, and its program. Raises UnknownVersionError, CorruptRecordError."""
        current = self.module(name)
        for entry in (*self._dropped(name), *((*current.past, current) if current else ())):
            if entry.version == version:
                return entry.info, entry.program
        stored = self.catalog.past_version(name, version)
        return stored.info, stored.provenance.program

    def usage_row(self, key: bytes) -> bytes | None:
        """The row of `usage` under a key, or None."""
        for draft in self._with_parents():
            if key in draft.usage:
                return draft.usage[key]
        return self.catalog.usage_row(key)

    def staged_usage(self) -> Iterator[bytes]:
        """The keys of the rows of `usage` that are staged here and below."""
        return (key for draft in self._with_parents() for key in draft.usage)

    def all_aliases(self) -> dict[str, Alias]:
        """All aliases: reads every one."""
        below = self._parent.all_aliases() if self._parent else self.catalog.aliases()
        changed = {**below, **self.aliases.meanings} if self.aliases else below
        return {alias: meaning for alias, meaning in changed.items() if meaning is not None}

    def alias(self, alias: str) -> Alias | None:
        """What an alias means, or None."""
        for draft in self._with_parents():
            if alias in draft.aliases.meanings:
                return draft.aliases.meanings[alias]
        return self.catalog.alias(alias)

    def aliases_of(self, name: str) -> Collection[str]:
        """The aliases of a module."""
        below = self._parent.aliases_of(name) if self._parent else self.catalog.aliases_of(name)
        changes = self.aliases.by_name.get(name)
        return aliases_after(below, changes) if changes else below

    def alias_count(self) -> int:
        """How many aliases there are."""
        below = self._parent.alias_count() if self._parent else self.catalog.alias_count
        return below + self.aliases.added

    def all_policies(self) -> dict[tuple[str, str], Policy]:
        """Policies, by source and pattern."""
        below = self._parent.all_policies() if self._parent else self.catalog.policies
        changed = {**below, **self.policies}
        return {key: policy for key, policy in changed.items() if policy is not None}

    def all_implications(self) -> dict[str, Implications]:
        """Implications, by source."""
        if self.implications is not None:
            return self.implications
        return self._parent.all_implications() if self._parent else self.catalog.implications()

    def all_defaults(self) -> Defaults:
        """Rules for discovered modules, by source."""
        if self.defaults is not None:
            return self.defaults
        return self._parent.all_defaults() if self._parent else self.catalog.defaults

    def is_staged(self, name: str) -> bool:
        """Whether this draft, or one below it, changes the module."""
        return name in self.modules or (self._parent is not None and self._parent.is_staged(name))

    def _dropped(self, name: str) -> tuple[Entry, ...]:
        return next((draft.dropped[name] for draft in self._with_parents() if draft.dropped.get(name)), ())


def _no_floor(name: str) -> int:
    return 0
