"""The reads of a `Registry` that miss its cache: from LMDB, and into the cache if that saves time."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import lmdb

from dspy_registry.readers.attachment import Attachment, Step
from dspy_registry.readers.cache import Results, UsageCache
from dspy_registry.readers.plan import Plan, dependencies, execute
from dspy_registry.registry_store import in_flight, lookup
from dspy_registry.registry_store.arguments import plain_name
from dspy_registry.registry_store.changes import State
from dspy_registry.registry_store.codec import INTACT, UNDECODABLE, corrupt, crc32, decode_info, misplaced
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import UnknownModuleError
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.selection import Selection
from dspy_registry.registry_store.usage import ModuleUsage, VersionUsage
from dspy_registry.registry_store.usage_rows import InForce, load_all, load_in_force, load_usage, load_version_usage

_monotonic = time.monotonic


def _value(environment: Environment, words: memoryview[float], seen: memoryview[float], name: str) -> bytes | None:
    """The record of a full name, read in flight. None: there is none, the read failed, or a commit went by.

    The words after `begin` tell whether what it began on was visible: see `visibility`. They were the same before it,
    because they were so when the step was made. `_fetch_with_care` finds out what is wrong, with registry or name.
    """
    try:
        txn = environment.begin(environment.modules)
        try:
            value: bytes | None = txn.get(name.encode()) if words == seen else None
        finally:
            txn.abort()
    except (lmdb.Error, UnicodeEncodeError):
        return None
    return value


in_flight.short_reads.add(_value.__code__)


class ColdReads(Attachment):
    """What `Registry` does when its hot paths find nothing."""

    __slots__ = ()

    def _read_first(self, name: str) -> ModuleInfo | None:
        """The module of a full name that is read for the first time. None: `_fetch_again` has all other cases.

        This read takes no gate, because it keeps nothing that a change could make untrue.
        """
        step = self._step
        if step is None or _monotonic() > self._look_again_at:
            return None
        environment, words, seen, cache = step
        marks = cache.marks
        if type(name) is not str or name in marks:
            return None
        value = _value(environment, words, seen, name)
        if value is None:
            return None
        # `info_of`, but without a call for intact bytes.
        try:
            info = decode_info(value).info if crc32(value) == INTACT else lookup.info_of(value, name)
        except UNDECODABLE as error:
            raise corrupt(name, error) from error
        if info.name != name:
            raise misplaced(name, info.name)
        if len(marks) < cache.marks_bound:
            marks.add(name)
        elif cache.declines > 0:
            cache.declines -= 1
        else:
            return None  # it is to be kept, for which `_fetch_again` takes the gate
        return info

    def _fetch(self, name: str) -> ModuleInfo | None:
        info = self._read_first(name)
        return self._fetch_again(name) if info is None else info

    def _exact(self, name: object) -> ModuleInfo | None:
        if self._word == self._valid:
            info = self._records.get(name)  # type: ignore[call-overload]  # as a dict, any key may be asked for
            if info is not None:
                return info if info.name == name else None
        return super()._exact(name)

    def _fetch_again(self, name: str) -> ModuleInfo | None:
        """A module that may now be worth keeping, of any name. None: there is no such name."""
        if type(name) is not str:
            name = plain_name(name)
        step = self._step
        if step is None or _monotonic() > self._look_again_at:
            return self._fetch_with_care(name)
        _, words, seen, cache = step
        if words != seen or name not in cache.marks:
            return self._fetch_with_care(name)
        info = cache.records.get(name)
        if info is not None:
            return info
        info = self._read(step, name)
        if info is None:
            return self._fetch_with_care(name)
        self._keep(step, name, info)
        return info

    def _read(self, step: Step, name: str) -> ModuleInfo | None:
        """The module of a full name. None as of `_value`."""
        environment, words, seen, _ = step
        value = _value(environment, words, seen, name)
        return None if value is None else lookup.info_of(value, name)

    def _keep(self, step: Step, name: str, info: ModuleInfo) -> None:
        """Keep a record that was read at this step, if the cache is still at it. Later changes then drop it."""
        with step[0].gate:
            if self._step is step and name not in self._freshness.pending:
                self._cache.put(name, info)
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
