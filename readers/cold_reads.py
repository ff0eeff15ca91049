"""The reads of a `Registry` that miss its cache: from LMDB, and into the cache if that saves time."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import lmdb

from dspy_registry.readers.attachment import Attachment
from dspy_registry.readers.cache import Cache, Results, UsageCache
from dspy_registry.readers.plan import Plan, dependencies, execute
from dspy_registry.registry_store import lookup
from dspy_registry.registry_store.arguments import plain_name
from dspy_registry.registry_store.changes import State
from dspy_registry.registry_store.codec import INTACT, UNDECODABLE, corrupt, crc32, decode_info, misplaced
from dspy_registry.registry_store.environment import short_reads
from dspy_registry.registry_store.errors import UnknownModuleError
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.selection import Selection
from dspy_registry.registry_store.usage import ModuleUsage, VersionUsage
from dspy_registry.registry_store.usage_rows import InForce, load_all, load_in_force, load_usage, load_version_usage

_monotonic = time.monotonic


class ColdReads(Attachment):
    """What `Registry` does when its hot paths find nothing."""

    __slots__ = ()

    def _fetch(self, name: str) -> ModuleInfo | None:
        """The module of a name. The code for a first read of a full name is here; `_fetch_again` has all other cases.

        This read takes no gate, because it keeps nothing that a change could make untrue. A fork waits for it, because
        it is in flight. The words after `begin` tell whether what it began on was visible: see `visibility`.
        """
        shared = self._word
        word, usage = shared[()], self._usage_seen
        if word != self._followed or _monotonic() > self._look_again_at:
            return self._fetch_with_care(name)
        # Read after the word: `_reopen` first makes `_followed` equal no word.
        cache = self._cache
        environment = self._environment
        if type(name) is str and name not in cache.marks and environment is not None:
            environment.in_flight.append(name)
            try:
                txn = environment.begin(environment.modules)
                try:
                    value = None
                    if shared[()] == word and self._usage_word[()] == usage:
                        value = txn.get(name.encode())
                finally:
                    txn.abort()
            except (lmdb.Error, UnicodeEncodeError, AttributeError):
                value = None  # `_fetch_with_care` finds out what is wrong, with the registry or the name
            finally:
                environment.in_flight.pop()
            if value is not None:
                # `info_of`, but without a call for intact bytes.
                try:
                    info = decode_info(value).info if crc32(value) == INTACT else lookup.info_of(value, name)
                except UNDECODABLE as error:
                    raise corrupt(name, error) from error
                if info.name != name:
                    raise misplaced(name, info.name)
                if len(cache.marks) < cache.marks_bound:
                    cache.marks.add(name)
                else:  # `is_due`, but without a call
                    cache.declines -= 1
                    if cache.declines < 0:
                        self._keep_one(word, cache, name, info)  # not in flight now: a fork may hold the gate
                return info
        return self._fetch_again(name)

    def _exact(self, name: object) -> ModuleInfo | None:
        if self._word == self._valid:
            info = self._records.get(name)  # type: ignore[call-overload]  # as a dict, any key may be asked for
            if info is not None:
                return info if info.name == name else None
        return super()._exact(name)

    def _fetch_again(self, name: str) -> ModuleInfo | None:
        """A module that was read before, and may now be worth keeping."""
        if type(name) is not str:
            name = plain_name(name)
        shared = self._word
        word, usage = shared[()], self._usage_seen
        cache = self._cache
        if word != self._followed or name not in cache.marks or _monotonic() > self._look_again_at:
            return self._fetch_with_care(name)
        info = cache.records.get(name)
        if info is not None:
            return info
        info = self._read(name, shared, word, usage)
        if info is None:
            return self._fetch_with_care(name)
        self._keep(word, cache, name, info)
        return info

    def _read(self, name: str, shared: memoryview[float], word: float, usage: float) -> ModuleInfo | None:
        """The module of a full name, read in flight. None: there is none, the read failed, or a commit went by.

        `word` is what `shared` was before, and `usage` the usage word.
        """
        environment = self._live()
        environment.in_flight.append(name)
        try:
            txn = environment.begin(environment.modules)
            try:
                is_visible = shared[()] == word and self._usage_word[()] == usage
                value = txn.get(name.encode()) if is_visible else None
            finally:
                txn.abort()
        except (lmdb.Error, UnicodeEncodeError, AttributeError):
            return None
        finally:
            environment.in_flight.pop()
        return None if value is None else lookup.info_of(value, name)

    def _keep_one(self, word: float, cache: Cache, name: str, info: ModuleInfo) -> None:
        if cache.keeps_one():
            self._keep(word, cache, name, info)

    def _keep(self, word: float, cache: Cache, name: str, info: ModuleInfo) -> None:
        """Keep a record that was read after `word`, if the cache is still at that word. Later changes then drop it."""
        with self._live().gate:
            if self._followed == word and self._cache is cache and name not in self._freshness.pending:
                cache.put(name, info)
                self._offer()

    def _fetch_with_care(self, name: str) -> ModuleInfo | None:
        return self._in_gate(partial(self._find, plain_name(name)))

    def _find(self, name: str) -> ModuleInfo | None:
        cache = self._cache
        # If the word could not be followed, everything is pending, and what is kept may be out of date.
        is_pending = self._freshness.is_pending(name)
        info = None if is_pending else cache.records.get(name)
        if info is None:
            info = self._in_transaction(lookup.find_info, name)
            if info is not None and not is_pending and cache.is_due(name):
                cache.put(name, info)
        self._offer()
        return info

    def _select(self, name: str) -> Selection:
        return self._in_gate(partial(self._find_selection, plain_name(name)))

    def _find_selection(self, name: str) -> Selection:
        is_pending = self._freshness.is_pending(name)
        selection = None if is_pending else self._cache.selections.get(name)
        if selection is None:
            selection = self._in_transaction(lookup.select, name)
            if not is_pending and self._cache.size:
                self._cache.put_selection(name, selection)
        self._offer()
        return selection

    def _execute_and_keep(self, results: Results, arguments: Any, plan: Plan) -> tuple[str, ...]:
        """The result of a plan, kept under the query's arguments in one of the cache's dictionaries."""

        def work() -> tuple[str, ...]:
            names = self._in_transaction(execute, plan)
            terms = dependencies(plan)
            if self._freshness.pending.isdisjoint(terms):
                self._cache.put_result(results, arguments, terms, names)
                self._offer()
            return names

        return self._in_gate(work)

    def usages(self) -> list[ModuleUsage]:
        self._catch_up()
        return self._in_transaction(load_all)

    def _usage_of(self, name: str) -> ModuleUsage:
        known = self._usage
        if self._usage_word[()] == known.word:
            try:
                return known.rows[name]
            except KeyError:
                pass
        return self._in_gate(partial(self._load_usage, name))

    def _load_usage(self, name: str) -> ModuleUsage:
        cache = self._usage_cache()
        usage = self._in_transaction(load_usage, name) or ModuleUsage(name)
        cache.put(name, usage)
        return usage

    def _version_usage(self, name: str, version: int) -> VersionUsage:
        self._catch_up()
        return self._in_transaction(load_version_usage, name, version)

    def _in_force(self, name: str) -> InForce:
        known = self._usage
        if self._usage_word[()] == known.word and self._word[()] == known.revision_word:
            try:
                return known.in_force[name]
            except (KeyError, TypeError):
                pass
        return self._in_gate(partial(self._load_in_force, plain_name(name)))

    def _load_in_force(self, name: str) -> InForce:
        revision_word = self._word[()]
        cache = self._usage_cache()
        found = self._in_transaction(load_in_force, name)
        cache.put_in_force(name, revision_word, found)
        return found

    def _usage_cache(self) -> UsageCache:
        """The cache for what is read from now on."""
        word = self._usage_word[()]
        if self._usage.word != word or self._usage.is_full:
            self._usage = UsageCache(word)
        return self._usage

    def _execute(self, plan: Plan) -> tuple[str, ...]:
        if self._word == self._valid:
            known = self._by_arguments.get(plan)
            if known is not None:
                return known
        return self._execute_and_keep(self._by_arguments, plan, plan)

    def _unknown(self, name: object) -> UnknownModuleError:
        return self._in_transaction(lookup.unknown, name)

    def _state(self) -> State:
        self._catch_up()
        return self._in_transaction(lookup.load_state)


short_reads.update((ColdReads._fetch.__code__, ColdReads._read.__code__))
