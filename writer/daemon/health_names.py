"""Which module version the names of a reported call mean, and by which rules its circuit goes."""

from __future__ import annotations

import logging
from typing import Final

from dspy_registry.registry_store.boot_clock import unix_time
from dspy_registry.registry_store.circuit import CircuitRules, rules_of
from dspy_registry.registry_store.circuits import Key
from dspy_registry.registry_store.errors import CorruptRecordError, UnknownVersionError
from dspy_registry.registry_store.policy import Declaration, effective_policy
from dspy_registry.registry_store.policy_rows import load_policies
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.classes import ClassIndex
from dspy_registry.writer.daemon.host import Host

_NAMES_KEPT: Final = 16_384

_log = logging.getLogger("dspy_registry")


class _Found:
    """The module that reported names mean: its full name, the version in force, and since when (Unix time)."""

    __slots__ = ("name", "pool", "since", "version")

    def __init__(self, name: str, version: int, since: float, pool: str) -> None:
        self.name = name
        self.version = version
        self.since = since
        self.pool = pool


class Names:
    """What names, versions and rules are, as of the newest revision. Kept until there is another one."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._revision = -1
        self._classes = ClassIndex()
        self._found: dict[tuple[str, ...], _Found | None] = {}
        self._kept: dict[Key, bool] = {}
        self._rules: dict[str, CircuitRules] = {}
        self._declarations: list[Declaration] | None = None

    def asked(self, name: str, version: int | None = None) -> Key:
        """The full name, and the version; None: the one in force.

        Raises UnknownModuleError, and UnknownVersionError for a version that is not kept.
        """
        found = self._of((name,))
        if found is None:
            with self._host.environment.reading() as txn:
                raise Catalog(txn, self._host.environment.dbs).unknown(name)
        if version is not None and not self.has(found.name, version):
            with self._host.environment.reading() as txn:
                kept = Catalog(txn, self._host.environment.dbs).kept_versions(found.name)
            raise UnknownVersionError(found.name, version, sorted({*kept, found.version}, reverse=True))
        return found.name, found.version if version is None else version

    def has(self, name: str, version: int) -> bool:
        """Whether a module of this full name is registered, and the version is in force or kept."""
        found = self._of((name,))
        if found is None or found.name != name:
            return False
        return version == found.version or self._is_kept(name, version)

    def key(self, names: tuple[str, ...], version: int, began: float) -> Key | None:
        """The module and version of a call. None: it is not registered, or the version is not kept any longer."""
        found = self._of(names)
        if found is None:
            return None
        if version:
            return (found.name, version) if version == found.version or self._is_kept(found.name, version) else None
        at = unix_time(began)
        if at >= found.since:
            return found.name, found.version
        with self._host.environment.reading() as txn:
            version = Catalog(txn, self._host.environment.dbs).version_at(found.name, int(at * 1000))
        return (found.name, version) if version else None

    def rules(self, name: str) -> CircuitRules:
        """The rules of a module of this full name."""
        self._follow()
        if name not in self._rules:
            found = self._of((name,))
            policy = effective_policy(self._declared(), name, "" if found is None else found.pool)
            self._rules[name] = rules_of(policy)
        return self._rules[name]

    def _declared(self) -> list[Declaration]:
        if self._declarations is None:
            try:
                with self._host.environment.reading() as txn:
                    self._declarations = load_policies(txn, self._host.environment.dbs)
            except CorruptRecordError as error:
                _log.warning("%s Circuits go by the default numbers.", error)
                self._declarations = []
        return self._declarations

    def _of(self, names: tuple[str, ...]) -> _Found | None:
        self._follow()
        if names not in self._found:
            with self._host.environment.reading() as txn:
                self._found[names] = self._look_up(Catalog(txn, self._host.environment.dbs, None, self._classes), names)
        return self._found[names]

    def _look_up(self, catalog: Catalog, names: tuple[str, ...]) -> _Found | None:
        """By the rule of statistics: a registered name first, then what else a name may mean."""
        for find in (lambda name: name, catalog.registered_name, catalog.name_of_class):
            for name in names:
                full = find(name)
                try:
                    stored = None if full is None or not full else catalog.module(full)
                except CorruptRecordError:
                    stored = None
                if stored is not None:
                    kept = stored.provenance
                    return _Found(stored.info.name, kept.version, kept.updated_at / 1000, stored.info.pool_type)
        return None

    def _is_kept(self, name: str, version: int) -> bool:
        key = name, version
        if key not in self._kept:
            with self._host.environment.reading() as txn:
                self._kept[key] = Catalog(txn, self._host.environment.dbs).is_kept(name, version)
        return self._kept[key]

    def _follow(self) -> None:
        revision = self._host.revision
        if revision != self._revision or len(self._found) + len(self._kept) > _NAMES_KEPT:
            self._found, self._kept, self._rules, self._declarations = {}, {}, {}, None
            self._classes = ClassIndex()
            self._revision = revision
