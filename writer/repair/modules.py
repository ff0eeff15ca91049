"""Which record each module gets, and which versions are kept before it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from dspy_registry.registry_store.changes import Alias, Change, ModuleChange, State, alias_codec, change_codec
from dspy_registry.registry_store.codec import encode, open_record, seal_record
from dspy_registry.registry_store.layers import CLIENT, Layer, layer_codec, merge
from dspy_registry.registry_store.layout import (
    ALIASES,
    CHANGES,
    FORMAT_VERSION,
    HISTORY,
    HISTORY_VERSIONS,
    LAYERS,
    MODULES,
    SEQUENCES,
    versioned_key,
)
from dspy_registry.registry_store.order import GONE, NAMES_PER_ROW, load_row
from dspy_registry.registry_store.records import Provenance, StoredModule
from dspy_registry.writer.core_modules import CORE_MODULES
from dspy_registry.writer.repair.account import Account
from dspy_registry.writer.repair.reading import LOOSE, NEWEST, Found
from dspy_registry.writer.repair.soundness import past_record
from dspy_registry.writer.store import core_layer

_HISTORY: Final = "its history"
_BACKUP: Final = "the backup"
_LAYERS: Final = "what manifests, core and discovery declare of it"
_RELEASE: Final = "the core modules of this release"
_NO_RECORD: Final = "the page with its record cannot be read"
_GAP: Final = "a later version is lost, and the versions kept of a module have no gap"
_CORE: Final = {info.name: info for info in CORE_MODULES}


class Candidate(NamedTuple):
    """A record that a module may get, and where it was found."""

    stored: StoredModule
    origin: str


class Modules:
    """The modules of the new registry: `records` by name, and `past`, their earlier versions as stored.

    `history` are all earlier versions that can be read, `renumbered` the new numbers of versions in force.
    `layers` are what sources declare, by name: sound ones, and those that stand for lost ones.
    """

    def __init__(self, found: Found, backup: Found, state: State, account: Account) -> None:
        self._found = found
        self._backup = backup
        self._state = state
        self._account = account
        self._order = _order(found)
        self._logged = _logged(found)
        self.history = {**_past(backup)}
        for name, versions in _past(found).items():
            self.history[name] = {**self.history.get(name, {}), **versions}
        self.layers = _layers(found)
        self.records: dict[str, StoredModule] = {}
        self.past: dict[str, dict[int, bytes]] = {}
        self.renumbered: dict[str, int] = {}
        expected = self._expected()
        for name in sorted(expected):
            self._choose(name)
        self._number_sequences()
        self._keep_past()
        self._tell_of_unnamed(len(expected))

    def _expected(self) -> set[str]:
        """The names of all modules that something shows to have been registered."""
        found = self._found
        names = {*self._order, *self.layers, *_targets(found)}
        names |= {_text(key) for key in found.rows[MODULES]}
        names |= {_text(key) for database, key in found.unsound if database == MODULES}
        names |= {_text(key.partition(b"\0")[0]) for database, key in found.unsound if database == LAYERS}
        if found.lacks(MODULES) and found.lacks(SEQUENCES):
            names |= {_text(key) for key in self._backup.rows[MODULES]}
        return {name for name in names if name and not self._is_gone(name)}

    def _is_gone(self, name: str) -> bool:
        """Whether what was found of a module is of before it was unregistered."""
        origin = self._found.origin.get((MODULES, name.encode()), NEWEST)
        if name.encode() in self._found.rows[MODULES] and origin == NEWEST:
            return False
        if not self._found.lacks(SEQUENCES):
            return name not in self._order
        logged = self._logged.get(name)
        return logged is not None and logged[1].action == "unregistered"

    def _choose(self, name: str) -> None:
        best = self._best(name)
        if best is None:
            reason = self._found.unsound.get((MODULES, name.encode()), _NO_RECORD)
            self._account.lose(MODULES, name, f"{reason}; neither history nor backup nor manifest has it")
            return
        self.records[name] = best.stored
        if best.origin != NEWEST:
            self._account.took(MODULES, name, f"{best.origin}, version {best.stored.provenance.version}")

    def _best(self, name: str) -> Candidate | None:
        found = self._stored(self._found, name)
        if found is not None and found.origin == NEWEST:
            return found
        past = self.history.get(name, {})
        newest = [Candidate(past_record(versioned_key(name, max(past)), past[max(past)]), _HISTORY)] if past else []
        kept = [each for each in (found, self._stored(self._backup, name), *newest) if each is not None]
        best = max(kept, key=lambda each: each.stored.provenance.version, default=None)
        return self._declared(name, best) or best or self._core(name)

    def _stored(self, source: Found, name: str) -> Candidate | None:
        value = source.rows[MODULES].get(name.encode())
        if value is None:
            return None
        origin = _BACKUP if source is self._backup else source.origin.get((MODULES, name.encode()), NEWEST)
        return Candidate(open_record(value, name), origin)

    def _declared(self, name: str, best: Candidate | None) -> Candidate | None:
        """What the layers make of a module, unless its record was a client's, or it is what was found."""
        revision, logged = self._logged.get(name, (0, None))
        client = (
            logged.source == CLIENT if logged and logged.source else best and best.stored.provenance.source == CLIENT
        )
        if client or not self.layers.get(name):
            return None
        info, source = merge(name, self.layers[name].values())
        known = best.stored.provenance.version if best else 0
        version = max(logged.version if logged else 0, known + 1)
        if best and encode(info) == encode(best.stored.info) and source == best.stored.provenance.source:
            return None
        return Candidate(StoredModule(info, self._fresh(name, version, source, revision)), _LAYERS)

    def _core(self, name: str) -> Candidate | None:
        if name not in _CORE:
            return None
        layer = core_layer(_CORE[name])
        self.layers[name] = {layer.source: layer}
        info, source = merge(name, [layer])
        return Candidate(StoredModule(info, self._fresh(name, 1, source, 0)), _RELEASE)

    def _fresh(self, name: str, version: int, source: str, revision: int) -> Provenance:
        state = self._state
        return Provenance(version, revision or state.revision, state.committed_at, self._order.get(name, -1), source)

    def _number_sequences(self) -> None:
        """Each module keeps its place in the order of registration. Those without one come last."""
        taken: dict[int, str] = {}
        by_age = sorted(self.records.items(), key=lambda item: item[1].provenance.revision, reverse=True)
        homeless = [name for name, stored in by_age if not self._settle(taken, name, stored.provenance.sequence)]
        self.next_sequence = max([self._state.next_sequence, *(sequence + 1 for sequence in taken)])
        for name in sorted(homeless, key=lambda name: self.records[name].provenance.revision):
            self._settle(taken, name, self.next_sequence)
            self.next_sequence += 1
        for sequence, name in taken.items():
            self.records[name] = _changed(self.records[name], sequence=sequence)

    def _settle(self, taken: dict[int, str], name: str, sequence: int) -> bool:
        is_trusted = self._found.origin.get((MODULES, name.encode())) != LOOSE
        place = sequence if is_trusted else self._order.get(name, sequence)
        return place >= 0 and taken.setdefault(place, name) == name

    def _keep_past(self) -> None:
        for name, stored in self.records.items():
            self._keep_past_of(name, stored.provenance.version)
        for name in self.history.keys() - self.records.keys():
            self._keep_run(name, max(self.history[name]))
        for (database, key), reason in self._found.unsound.items():
            if database == HISTORY and not self._is_kept(key):
                self._account.lose(HISTORY, _named_version(key), reason)

    def _keep_past_of(self, name: str, version: int) -> None:
        before = [number for number in self.history.get(name, {}) if number < version]
        last = max(before, default=0)
        if last != version - 1:
            self.renumbered[name] = last + 1
            self.records[name] = _changed(self.records[name], version=last + 1)
            reason = f"it is lost, so version {version} is version {last + 1} now: the versions kept have no gap"
            self._account.lose(HISTORY, (name, version - 1), reason)
        self._keep_run(name, last)

    def _keep_run(self, name: str, last: int) -> None:
        """Keep the versions up to `last` that have no gap between them."""
        rows = self.history.get(name, {})
        kept: dict[int, bytes] = {}
        number = last
        while number in rows and len(kept) < HISTORY_VERSIONS:
            kept[number] = rows[number]
            number -= 1
        self.past[name] = kept
        for version in rows:
            if version <= number and len(kept) < HISTORY_VERSIONS:
                self._account.lose(HISTORY, (name, version), _GAP)

    def _is_kept(self, key: bytes) -> bool:
        name, version = _named_version(key)
        return version in self.past.get(name, {}) or version >= self._last_version(name)

    def _last_version(self, name: str) -> int:
        """The version in force: what stands at it or above it is lost as a record, and told there."""
        return self.records[name].provenance.version if name in self.records else 2**32

    def _tell_of_unnamed(self, named: int) -> None:
        missing = self._found.entries.get(MODULES, 0) - named
        if missing > 0 and self._found.lacks(MODULES):
            self._account.lose(MODULES, "", f"{missing} more, whose names cannot be read")

    def rows(self) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
        """The rows of `modules` and of `history`."""
        records = {
            name.encode(): seal_record(encode(stored.info), stored.provenance, FORMAT_VERSION)
            for name, stored in self.records.items()
        }
        past = {versioned_key(name, version): row for name, rows in self.past.items() for version, row in rows.items()}
        return records, past


def _changed(stored: StoredModule, **fields: int) -> StoredModule:
    return StoredModule(stored.info, msgspec.structs.replace(stored.provenance, **fields))


def _order(found: Found) -> dict[str, int]:
    """The place of each name in the order of registration, as far as its rows can be read."""
    order = {}
    for key, value in found.rows[SEQUENCES].items():
        names = load_row(value, key, found.format)
        first = int.from_bytes(key, "big") * NAMES_PER_ROW
        order.update({name: place for place, name in enumerate(names, first) if name != GONE})
    return order


def _logged(found: Found) -> dict[str, tuple[int, ModuleChange]]:
    """The last change of each module that the log names, with its revision."""
    logged = {}
    for key, value in sorted(found.rows[CHANGES].items()):
        change: Change = change_codec.load(value, key, found.format)
        logged.update({module.name: (change.revision, module) for module in change.modules})
    return logged


def _past(found: Found) -> dict[str, dict[int, bytes]]:
    past: dict[str, dict[int, bytes]] = defaultdict(dict)
    for key, value in found.rows[HISTORY].items():
        name, version = _named_version(key)
        past[name][version] = value
    return past


def _layers(found: Found) -> dict[str, dict[str, Layer]]:
    layers: dict[str, dict[str, Layer]] = defaultdict(dict)
    for key, value in found.rows[LAYERS].items():
        name, _, source = key.partition(b"\0")
        layers[_text(name)][_text(source)] = layer_codec.load(value, key, found.format)
    return dict(layers)


def _targets(found: Found) -> Iterable[str]:
    for key, value in found.rows[ALIASES].items():
        alias: Alias = alias_codec.load(value, key, found.format)
        yield alias.name


def _named_version(key: bytes) -> tuple[str, int]:
    return _text(key[:-5]), int.from_bytes(key[-4:], "big")


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
