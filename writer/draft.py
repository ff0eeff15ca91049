"""A draft: the changes of a group of requests, before any of them is written.

Requests are staged one after the other, and each sees the changes of those before it. A request is staged on a child
of the group's draft, which is absorbed when the whole request has succeeded. A request that fails leaves no trace.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from dspy_registry.registry_store.changes import Alias
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.errors import (
    ConflictError,
    CorruptRecordError,
    InvalidModuleError,
    RegistryFullError,
    UnknownAliasError,
    UnknownModuleError,
)
from dspy_registry.registry_store.layers import CLIENT, DISCOVERED, Default, Layer, merge, with_defaults
from dspy_registry.registry_store.layout import (
    LAST_SEQUENCE,
    MAX_ALIASES,
    MAX_ALIASES_OF_MODULE,
)
from dspy_registry.registry_store.records import By, ModuleInfo
from dspy_registry.registry_store.validation import (
    check_expected_version,
    name_problems,
    stored_name_problems,
    validate_encoded,
)
from dspy_registry.registry_store.vocabulary import Vocabulary
from dspy_registry.writer.entry import Entry, after
from dspy_registry.writer.staged import Staged

_SHADOWED = "a module has this full name, and full names always win"


class Draft(Staged):
    """Staged changes over the catalog, or over another draft: what requests change."""

    def child(self, by: By | None = None) -> Draft:
        """A draft for one request, which `by` asks for. `absorb` it when the request has succeeded."""
        return Draft(self.catalog, self, by)

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

    def put_version(self, info: ModuleInfo, source: str, program: bytes) -> Entry:
        """Put a version in force that has this program; empty: none. What is in force already makes no new version.

        Returns the version in force. Raises InvalidModuleError.
        """
        self._put(*validate_encoded(info), source, self.module(info.name), program)
        entry = self.module(info.name)
        assert entry is not None
        return entry

    def has_program(self, digest: bytes) -> bool:
        """Whether a document is stored, or staged."""
        return any(digest in draft.programs for draft in self._with_parents()) or self.catalog.has_program(digest)

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

    # How modules change

    def _discovered(self) -> list[str]:
        names = {name for name, _ in self.catalog.layers_from(DISCOVERED)}
        for draft in self._with_parents():
            names.update(draft.layers)
        return sorted(name for name in names if DISCOVERED in self.layers_of(name))

    def _put(
        self, info: ModuleInfo, encoded: bytes, source: str, current: Entry | None, program: bytes | None = None
    ) -> None:
        """Put a version in force. `program` None: it keeps the program of the version that it replaces."""
        if program is None:
            program = current.program if current else b""
        if current is None:
            sequence = self.take_sequence()
            version = after(info.name, max(self._last_version(info.name), self.version_floor(info.name)))
            self.modules[info.name] = Entry(info, encoded, version, source, sequence, (), self.by, program)
        elif (current.encoded, current.program) != (encoded, program) or self._is_used_elsewhere(current, source):
            past = (*current.past, current) if self.is_staged(info.name) else ()
            version = after(info.name, max(current.version, self.version_floor(info.name)))
            self.modules[info.name] = Entry(info, encoded, version, source, current.sequence, past, self.by, program)
        elif source != current.source:
            # The same record from another source: no new version and no new revision.
            self.modules[info.name] = msgspec.structs.replace(current, source=source, by=self.by, global_revision=0)
        else:
            return
        self.changed_by[info.name] = self.by

    def _is_used_elsewhere(self, current: Entry, source: str) -> bool:
        """Whether the same record from another source needs a new number: this one means something else elsewhere."""
        return source != current.source and self.version_floor(current.info.name) >= current.version

    def take_sequence(self) -> int:
        """The next place in the order of registration. Raises RegistryFullError."""
        if self.next_sequence > LAST_SEQUENCE:
            raise RegistryFullError(
                f"all {LAST_SEQUENCE + 1} registration sequences are used, and no sequence is used twice."
            )
        self.next_sequence += 1
        return self.next_sequence - 1

    def _drop(self, name: str, current: Entry | None) -> None:
        if current is not None and self.is_staged(name):
            # These versions will be acknowledged, so no later version of this name may have one of their numbers.
            self.dropped[name] = (*self._dropped(name), *current.past, current)
        self.modules[name] = None
        self.changed_by[name] = self.by
        for alias in tuple(self.aliases_of(name)):
            self.aliases.put(alias, self.alias(alias), None, self.by)
        labels = self.labels_of(name)
        if labels:
            self.put_labels(name, {}, labels)

    def _last_version(self, name: str) -> int:
        dropped = self._dropped(name)
        if dropped:
            return dropped[-1].version
        stored = self.catalog.module(name) if self.is_staged(name) else None
        if stored is not None:  # dropped and registered again within one draft
            return stored.provenance.version
        return self.catalog.last_version(name) if self.catalog.has_history else 0
