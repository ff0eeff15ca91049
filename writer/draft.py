"""A draft: the changes of a group of requests, before any of them is written.

Requests are staged one after the other, and each sees the changes of those before it. A request is staged on a child
of the group's draft, which is absorbed when the whole request has succeeded. A request that fails leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

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
from dspy_registry.registry_store.layout import (
    LAST_SEQUENCE,
    LAST_VERSION,
    MAX_ALIASES,
    MAX_ALIASES_OF_MODULE,
    versioned_key,
    versioned_prefix,
)
from dspy_registry.registry_store.policy import Policy
from dspy_registry.registry_store.records import By, ModuleInfo
from dspy_registry.registry_store.validation import (
    check_expected_version,
    check_version,
    name_problems,
    stored_name_problems,
    validate_encoded,
)
from dspy_registry.registry_store.vocabulary import Vocabulary
from dspy_registry.writer.aliases import StagedAliases, aliases_after
from dspy_registry.writer.catalog import Catalog

_SHADOWED = "a module has this full name, and full names always win"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A module in the draft. `encoded` are its bytes, `past` the versions that were replaced within this draft.

    `by` is whoever changed it last. None: not known.
    """

    info: ModuleInfo
    encoded: bytes
    version: int
    source: str
    sequence: int
    past: tuple[Entry, ...] = ()
    by: By | None = None


class Draft:
    """Staged changes over the catalog, or over another draft. `by` asks for them. None: it is not known who does."""

    def __init__(self, catalog: Catalog, parent: Draft | None = None, by: By | None = None) -> None:
        self.catalog = catalog
        self._parent = parent
        self.by = by
        self.authors: dict[By, None] = {} if by is None else {by: None}
        self.changed_by: dict[str, By | None] = {}
        self.modules: dict[str, Entry | None] = {}
        self.dropped: dict[str, tuple[Entry, ...]] = {}
        self.layers: dict[str, dict[str, Layer]] = {}
        self.aliases = StagedAliases()
        self.implications: dict[str, Implications] | None = None
        self.defaults: Defaults | None = None
        self.requests: dict[bytes, Callable[[int], bytes] | None] = {}
        self.usage: dict[bytes, bytes | None] = {}
        self.policies: dict[tuple[str, str], Policy | None] = {}
        self.next_sequence: int = parent.next_sequence if parent else catalog.state.next_sequence

    @property
    def has_effect(self) -> bool:
        """Whether anything is staged here. What is staged in the parent does not count."""
        is_declared = self.implications is not None or self.defaults is not None
        return bool(self.modules or self.layers or self.usage or self.aliases or self.policies) or is_declared

    def remember(self, client: bytes, answers: Callable[[int], bytes] | None) -> None:
        """Store the answers to a client in the commit of their effects. None: forget the client.

        `answers` is called with the revision in which this draft is visible. Stored answers alone make no revision.
        """
        self.requests[client] = answers

    def child(self, by: By | None = None) -> Draft:
        """A draft for one request, of whoever asks for it. `absorb` it when the request has succeeded."""
        return Draft(self.catalog, self, by)

    def absorb(self, child: Draft) -> None:
        """Take over all changes of a child."""
        self.modules.update(child.modules)
        self.dropped.update(child.dropped)
        self.changed_by.update(child.changed_by)
        self.authors.update(child.authors)
        self.layers.update(child.layers)
        self.requests.update(child.requests)
        self.usage.update(child.usage)
        self.policies.update(child.policies)
        self.aliases.absorb(child.aliases)
        self.implications = child.implications if child.implications is not None else self.implications
        self.defaults = child.defaults if child.defaults is not None else self.defaults
        self.next_sequence = child.next_sequence

    def _with_parents(self) -> Iterator[Draft]:
        """This draft, its parent, and so on."""
        draft: Draft | None = self
        while draft is not None:
            yield draft
            draft = draft._parent

    # The registry as this draft leaves it

    def module(self, name: str) -> Entry | None:
        """The module of this full name, or None. Raises CorruptRecordError."""
        for draft in self._with_parents():
            if name in draft.modules:
                return draft.modules[name]
        stored = self.catalog.module(name)
        if stored is None:
            return None
        kept = stored.provenance
        return Entry(stored.info, encode(stored.info), kept.version, kept.source, kept.sequence, by=kept.by)

    def layers_of(self, name: str) -> dict[str, Layer]:
        """The layers of a module, by source."""
        for draft in self._with_parents():
            if name in draft.layers:
                return draft.layers[name]
        return self.catalog.layers(name)

    def usage_row(self, key: bytes) -> bytes | None:
        """The row of `usage` under a key, or None."""
        for draft in self._with_parents():
            if key in draft.usage:
                return draft.usage[key]
        return self.catalog.usage_row(key)

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

    # Requests

    def register(self, info: ModuleInfo, expected_version: int | None = None) -> None:
        """Register a client's record. Raises InvalidArgumentError, InvalidModuleError, ConflictError."""
        check_expected_version(expected_version)
        info, encoded = validate_encoded(info)
        current = self.module(info.name)
        version = current.version if current else 0
        if expected_version is not None and expected_version != version:
            raise ConflictError(info.name, expected_version, version)
        self._put(info, encoded, CLIENT, current)

    def unregister(self, name: str) -> None:
        """Remove a module with its layers and aliases, a damaged record too. Raises UnknownModuleError."""
        if stored_name_problems(name):
            raise UnknownModuleError(name)
        try:
            current = self.module(name)
        except CorruptRecordError:  # `apply` removes what is left of it
            current = None
        else:
            if current is None:
                raise self.catalog.unknown(name)
        if self.layers_of(name):
            self.layers[name] = {}
        self._drop(name, current)

    def declare(self, name: str, layer: Layer) -> None:
        """Set what a source other than a client declares of a module. Raises InvalidModuleError."""
        self.relayer(name, {**self.layers_of(name), layer.source: layer})

    def withdraw(self, name: str, source: str) -> None:
        """Remove what a source declares. A module that no other source declares is removed too."""
        current = self.layers_of(name)
        if source in current:
            self.relayer(name, {key: layer for key, layer in current.items() if key != source})

    def set_alias(self, alias: str, name: str, source: str = CLIENT) -> None:
        """Let `alias` resolve to the module `name`. Raises UnknownModuleError for a missing module.

        Raises InvalidModuleError for an alias that is malformed or a module's full name, or when there are too many.
        """
        problems = name_problems(alias)
        if not problems and self.module(alias) is not None:
            problems = (_SHADOWED,)
        if problems:
            raise InvalidModuleError(f"alias {alias!r}", problems)
        if stored_name_problems(name):
            raise UnknownModuleError(name)
        if self.module(name) is None:
            raise self.catalog.unknown(name)
        current, meaning = self.alias(alias), Alias(name, source)
        if current != meaning:
            self._refuse_one_too_many(alias, name, current)
            self.aliases.put(alias, current, meaning, self.by)

    def _refuse_one_too_many(self, alias: str, name: str, current: Alias | None) -> None:
        problems = []
        if (current is None or current.name != name) and len(self.aliases_of(name)) >= MAX_ALIASES_OF_MODULE:
            problems.append(f"{name} has {MAX_ALIASES_OF_MODULE} aliases, and no module may have more")
        if current is None and self.alias_count() >= MAX_ALIASES:
            problems.append(f"there are {MAX_ALIASES} aliases, and no registry may have more")
        if problems:
            raise InvalidModuleError(f"alias {alias!r}", problems)

    def remove_alias(self, alias: str) -> None:
        """Remove an alias. Raises UnknownAliasError when it is not declared."""
        current = None if stored_name_problems(alias) else self.alias(alias)
        if current is None:
            raise UnknownAliasError(alias)
        self.aliases.put(alias, current, None, self.by)

    def set_implications(self, source: str, implications: Mapping[str, tuple[str, ...]]) -> None:
        """Replace the implications that a source declares. Raises VocabularyError."""
        current = self.all_implications()
        others = {key: value for key, value in current.items() if key != source}
        changed = {**others, source: dict(implications)} if implications else others
        Vocabulary.combined(changed)
        if changed != current:
            self.implications = changed

    def set_defaults(self, source: str, rules: tuple[Default, ...]) -> None:
        """Replace a source's rules for discovered modules, and apply them. Raises InvalidModuleError."""
        current = self.all_defaults()
        others = {key: value for key, value in current.items() if key != source}
        changed = {**others, source: rules} if rules else others
        if encode(changed) == encode(current):
            return
        self.defaults = changed
        for name in self._discovered():
            layers = self.layers_of(name)
            if encode(with_defaults(name, layers, changed)) != encode(layers):
                self.relayer(name, layers)

    def relayer(self, name: str, layers: dict[str, Layer], *, releases: bool = False) -> None:
        """Replace what all sources but clients declare of a module. `releases`: a client's record gives way to it.

        Raises InvalidModuleError.
        """
        layers = with_defaults(name, layers, self.all_defaults() if DISCOVERED in layers else {})
        current = self.module(name)
        is_clients = current is not None and current.source == CLIENT and not releases
        if not is_clients and layers:
            info, source = merge(name, layers.values())
            self._put(*validate_encoded(info, is_registered=current is not None), source, current)
        elif not is_clients and current is not None:
            self._drop(name, current)
        self.layers[name] = layers

    def reset_usage(self, name: str, version: int | None) -> None:
        """Forget the statistics of a module, or of one version; None: of all. Raises UnknownModuleError.

        `name` is a name that has statistics, a full name, an alias or a short name. A version without statistics is
        no error. Raises InvalidArgumentError for what is no version.
        """
        check_version(version)
        found = self._with_usage(name)
        if found is None:
            raise self.catalog.unknown(name)
        if version is not None:
            keys = [versioned_key(found, version)]
        else:
            staged = (key for draft in self._with_parents() for key in draft.usage)
            prefix = versioned_prefix(found)
            keys = [
                found.encode(),
                *self.catalog.version_rows(found),
                *(key for key in staged if key.startswith(prefix)),
            ]
        for key in keys:
            if self.usage_row(key) is not None:
                self.usage[key] = None

    def _with_usage(self, name: str) -> str | None:
        """The module that a name means, or the name itself where it has statistics."""
        if stored_name_problems(name):
            return None
        if self.module(name) is not None or self.usage_row(name.encode()) is not None:
            return name
        return self.catalog.registered_name(name)

    # How modules change

    def _discovered(self) -> list[str]:
        names = {name for name, _ in self.catalog.layers_from(DISCOVERED)}
        for draft in self._with_parents():
            names.update(draft.layers)
        return sorted(name for name in names if DISCOVERED in self.layers_of(name))

    def _put(self, info: ModuleInfo, encoded: bytes, source: str, current: Entry | None) -> None:
        if current is None:
            self._refuse_when_full()
            version = _after(info.name, self._last_version(info.name))
            self.modules[info.name] = Entry(info, encoded, version, source, self.next_sequence, by=self.by)
            self.next_sequence += 1
        elif current.encoded != encoded:
            past = (*current.past, current) if self._is_staged(info.name) else ()
            version = _after(info.name, current.version)
            self.modules[info.name] = Entry(info, encoded, version, source, current.sequence, past, self.by)
        elif source != current.source:
            # The same record from another source: no new version and no new revision.
            self.modules[info.name] = msgspec.structs.replace(current, source=source, by=self.by)
        else:
            return
        self.changed_by[info.name] = self.by

    def _refuse_when_full(self) -> None:
        if self.next_sequence > LAST_SEQUENCE:
            raise RegistryFullError(
                f"all {LAST_SEQUENCE + 1} registration sequences are used, and no sequence is used twice."
            )

    def _drop(self, name: str, current: Entry | None) -> None:
        if current is not None and self._is_staged(name):
            # These versions will be acknowledged, so no later version of this name may have one of their numbers.
            self.dropped[name] = (*self._dropped(name), *current.past, current)
        self.modules[name] = None
        self.changed_by[name] = self.by
        for alias in tuple(self.aliases_of(name)):
            self.aliases.put(alias, self.alias(alias), None, self.by)

    def _is_staged(self, name: str) -> bool:
        return any(name in draft.modules for draft in self._with_parents())

    def _dropped(self, name: str) -> tuple[Entry, ...]:
        return next((draft.dropped[name] for draft in self._with_parents() if draft.dropped.get(name)), ())

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
        raise RegistryFullError(f"{name} is at version {version}, the last possible one.")
    return version + 1
