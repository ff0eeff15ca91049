"""A draft: what a group of requests makes of the registry, before any of it is written.

Requests are staged one after the other; each sees what those before it did. A request is staged on a draft of its
own over the group's, and absorbed when it has succeeded as a whole: one that fails leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import msgspec

from dspy_registry.registry_store.changes import Alias, Implications
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.errors import (
    ConflictError,
    CorruptRecordError,
    InvalidModuleError,
    RegistryFullError,
    UnknownAliasError,
    UnknownModuleError,
)
from dspy_registry.registry_store.layers import CLIENT, DISCOVERED, Default, Defaults, Layer, merge, with_defaults
from dspy_registry.registry_store.layout import LAST_SEQUENCE, LAST_VERSION, MAX_ALIASES, MAX_ALIASES_OF_MODULE
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.validation import check_expected_version, name_problems, validate_encoded
from dspy_registry.registry_store.vocabulary import Vocabulary
from dspy_registry.writer.aliases import StagedAliases, standing_aliases
from dspy_registry.writer.catalog import Catalog

_SHADOWED = "a module has this full name, and full names always win"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A module as the draft has it. `encoded` are the module's bytes, `past` its replaced versions in this draft."""

    info: ModuleInfo
    encoded: bytes
    version: int
    source: str
    sequence: int
    past: tuple[Entry, ...] = ()


class Draft:
    """Staged changes over the catalog, or over another draft."""

    def __init__(self, catalog: Catalog, parent: Draft | None = None) -> None:
        self.catalog = catalog
        self._parent = parent
        self.modules: dict[str, Entry | None] = {}
        self.dropped: dict[str, tuple[Entry, ...]] = {}
        self.layers: dict[str, dict[str, Layer]] = {}
        self.aliases = StagedAliases()
        self.implications: dict[str, Implications] | None = None
        self.defaults: Defaults | None = None
        self.requests: dict[bytes, Callable[[int], bytes] | None] = {}
        self.usage: dict[bytes, bytes | None] = {}
        self.next_sequence: int = parent.next_sequence if parent else catalog.state.next_sequence

    @property
    def has_effect(self) -> bool:
        """Whether anything is staged here, its parent's apart."""
        is_declared = self.implications is not None or self.defaults is not None
        return bool(self.modules or self.layers or self.usage or self.aliases) or is_declared

    def remember(self, client: bytes, answers: Callable[[int], bytes] | None) -> None:
        """Store what a client was answered, together with the effect; None forgets the client.

        `answers` is given the revision in which this draft is visible. Remembering alone makes no revision.
        """
        self.requests[client] = answers

    def child(self) -> Draft:
        """A draft for one request; `absorb` it when the request has succeeded."""
        return Draft(self.catalog, self)

    def absorb(self, child: Draft) -> None:
        """Take over what a child has staged."""
        self.modules.update(child.modules)
        self.dropped.update(child.dropped)
        self.layers.update(child.layers)
        self.requests.update(child.requests)
        self.usage.update(child.usage)
        self.aliases.absorb(child.aliases)
        self.implications = child.implications if child.implications is not None else self.implications
        self.defaults = child.defaults if child.defaults is not None else self.defaults
        self.next_sequence = child.next_sequence

    # What stands

    def module(self, name: str) -> Entry | None:
        """The module as it stands in this draft."""
        draft: Draft | None = self
        while draft is not None:
            if name in draft.modules:
                return draft.modules[name]
            draft = draft._parent
        stored = self.catalog.module(name)
        if stored is None:
            return None
        kept = stored.provenance
        return Entry(stored.info, encode(stored.info), kept.version, kept.source, kept.sequence)

    def layers_of(self, name: str) -> dict[str, Layer]:
        """The layers of a module as they stand, by source."""
        draft: Draft | None = self
        while draft is not None:
            if name in draft.layers:
                return draft.layers[name]
            draft = draft._parent
        return self.catalog.layers(name)

    def usage_row(self, key: bytes) -> bytes | None:
        """What stands in `usage` under a key."""
        draft: Draft | None = self
        while draft is not None:
            if key in draft.usage:
                return draft.usage[key]
            draft = draft._parent
        return self.catalog.usage_row(key)

    def all_aliases(self) -> dict[str, Alias]:
        """All aliases as they stand: reads them all."""
        below = self._parent.all_aliases() if self._parent else self.catalog.aliases()
        changed = {**below, **self.aliases.meanings} if self.aliases else below
        return {alias: meaning for alias, meaning in changed.items() if meaning is not None}

    def alias(self, alias: str) -> Alias | None:
        """What an alias means as it stands."""
        draft: Draft | None = self
        while draft is not None:
            if alias in draft.aliases.meanings:
                return draft.aliases.meanings[alias]
            draft = draft._parent
        return self.catalog.alias(alias)

    def aliases_of(self, name: str) -> Collection[str]:
        """The aliases of a module as they stand."""
        below = self._parent.aliases_of(name) if self._parent else self.catalog.aliases_of(name)
        changes = self.aliases.by_name.get(name)
        return standing_aliases(below, changes) if changes else below

    def alias_count(self) -> int:
        """How many aliases there are as they stand."""
        below = self._parent.alias_count() if self._parent else self.catalog.alias_count
        return below + self.aliases.added

    def all_implications(self) -> dict[str, Implications]:
        """Implications by source as they stand."""
        if self.implications is not None:
            return self.implications
        return self._parent.all_implications() if self._parent else self.catalog.implications()

    def all_defaults(self) -> Defaults:
        """Rules for discovered modules, by source, as they stand."""
        if self.defaults is not None:
            return self.defaults
        return self._parent.all_defaults() if self._parent else self.catalog.defaults

    # Requests

    def register(self, info: ModuleInfo, expected_version: int | None = None) -> None:
        """A client's record. Raises InvalidArgumentError, InvalidModuleError, ConflictError."""
        check_expected_version(expected_version)
        info, encoded = validate_encoded(info)
        standing = self.module(info.name)
        version = standing.version if standing else 0
        if expected_version is not None and expected_version != version:
            raise ConflictError(info.name, expected_version, version)
        self._put(info, encoded, CLIENT, standing)

    def unregister(self, name: str) -> None:
        """Remove a module with its layers and aliases, a damaged record too. Raises UnknownModuleError."""
        if name_problems(name):
            raise UnknownModuleError(name)
        try:
            standing = self.module(name)
        except CorruptRecordError:  # `apply` clears away what is left of it
            standing = None
        else:
            if standing is None:
                raise self.catalog.unknown(name)
        if self.layers_of(name):
            self.layers[name] = {}
        self._drop(name, standing)

    def declare(self, name: str, layer: Layer) -> None:
        """Set what a source other than a client declares of a module. Raises InvalidModuleError."""
        self.relayer(name, {**self.layers_of(name), layer.source: layer})

    def withdraw(self, name: str, source: str) -> None:
        """Remove what a source declares; a module that nothing else declares goes with it."""
        standing = self.layers_of(name)
        if source in standing:
            self.relayer(name, {key: layer for key, layer in standing.items() if key != source})

    def set_alias(self, alias: str, name: str, source: str = CLIENT) -> None:
        """Raises InvalidModuleError for an alias that is malformed, a module's full name, or one too many.

        UnknownModuleError for a missing module.
        """
        problems = name_problems(alias)
        if not problems and self.module(alias) is not None:
            problems = (_SHADOWED,)
        if problems:
            raise InvalidModuleError(f"alias {alias!r}", problems)
        if name_problems(name):
            raise UnknownModuleError(name)
        if self.module(name) is None:
            raise self.catalog.unknown(name)
        standing, meaning = self.alias(alias), Alias(name, source)
        if standing != meaning:
            self._refuse_one_too_many(alias, name, standing)
            self.aliases.put(alias, standing, meaning)

    def _refuse_one_too_many(self, alias: str, name: str, standing: Alias | None) -> None:
        problems = []
        if (standing is None or standing.name != name) and len(self.aliases_of(name)) >= MAX_ALIASES_OF_MODULE:
            problems.append(f"{name} has {MAX_ALIASES_OF_MODULE} aliases, and no module may have more")
        if standing is None and self.alias_count() >= MAX_ALIASES:
            problems.append(f"there are {MAX_ALIASES} aliases, and no registry may have more")
        if problems:
            raise InvalidModuleError(f"alias {alias!r}", problems)

    def remove_alias(self, alias: str) -> None:
        """Raises UnknownAliasError when it is not declared."""
        standing = None if name_problems(alias) else self.alias(alias)
        if standing is None:
            raise UnknownAliasError(alias)
        self.aliases.put(alias, standing, None)

    def set_implications(self, source: str, implications: Mapping[str, tuple[str, ...]]) -> None:
        """Replace the implications that a source declares. Raises VocabularyError."""
        standing = self.all_implications()
        others = {key: value for key, value in standing.items() if key != source}
        changed = {**others, source: dict(implications)} if implications else others
        Vocabulary.combined(changed)
        if changed != standing:
            self.implications = changed

    def set_defaults(self, source: str, rules: tuple[Default, ...]) -> None:
        """Replace a source's rules for discovered modules, and apply them. Raises InvalidModuleError."""
        standing = self.all_defaults()
        others = {key: value for key, value in standing.items() if key != source}
        changed = {**others, source: rules} if rules else others
        if encode(changed) == encode(standing):
            return
        self.defaults = changed
        for name in self._discovered():
            layers = self.layers_of(name)
            if encode(with_defaults(name, layers, changed)) != encode(layers):
                self.relayer(name, layers)

    def relayer(self, name: str, layers: dict[str, Layer]) -> None:
        """Replace all that sources other than clients declare of a module. Raises InvalidModuleError."""
        layers = with_defaults(name, layers, self.all_defaults() if DISCOVERED in layers else {})
        standing = self.module(name)
        is_clients = standing is not None and standing.source == CLIENT
        if not is_clients and layers:
            info, source = merge(name, layers.values())
            self._put(*validate_encoded(info), source, standing)
        elif not is_clients and standing is not None:
            self._drop(name, standing)
        self.layers[name] = layers

    # How modules come, change and go

    def _discovered(self) -> list[str]:
        names = {name for name, _ in self.catalog.layers_from(DISCOVERED)}
        draft: Draft | None = self
        while draft is not None:
            names.update(draft.layers)
            draft = draft._parent
        return sorted(name for name in names if DISCOVERED in self.layers_of(name))

    def _put(self, info: ModuleInfo, encoded: bytes, source: str, standing: Entry | None) -> None:
        if standing is None:
            self._refuse_when_full()
            version = _after(info.name, self._last_version(info.name))
            self.modules[info.name] = Entry(info, encoded, version, source, self.next_sequence)
            self.next_sequence += 1
        elif standing.encoded != encoded:
            past = (*standing.past, standing) if self._is_staged(info.name) else ()
            version = _after(info.name, standing.version)
            self.modules[info.name] = Entry(info, encoded, version, source, standing.sequence, past)
        elif source != standing.source:
            # The same record in another hand: kept without a new version or revision.
            self.modules[info.name] = msgspec.structs.replace(standing, source=source)

    def _refuse_when_full(self) -> None:
        if self.next_sequence > LAST_SEQUENCE:
            raise RegistryFullError(
                f"all {LAST_SEQUENCE + 1} registration sequences have been given, and none is given twice."
            )

    def _drop(self, name: str, standing: Entry | None) -> None:
        if standing is not None and self._is_staged(name):
            # Acknowledged all the same: no later version of this name may bear one of their numbers.
            self.dropped[name] = (*self._dropped(name), *standing.past, standing)
        self.modules[name] = None
        for alias in tuple(self.aliases_of(name)):
            self.aliases.put(alias, self.alias(alias), None)

    def _is_staged(self, name: str) -> bool:
        return name in self.modules or (self._parent is not None and self._parent._is_staged(name))

    def _dropped(self, name: str) -> tuple[Entry, ...]:
        return self.dropped.get(name) or (self._parent._dropped(name) if self._parent else ())

    def _last_version(self, name: str) -> int:
        dropped = self._dropped(name)
        if dropped:
            return dropped[-1].version
        stored = self.catalog.module(name) if self._is_staged(name) else None
        if stored is not None:  # dropped and registered again within one draft
            return stored.provenance.version
        return self.catalog.last_version(name) if self.catalog.has_history else 0


def _after(name: str, version: int) -> int:
    if version >= LAST_VERSION:
        raise RegistryFullError(f"{name} is at version {version}, the last that there is.")
    return version + 1
