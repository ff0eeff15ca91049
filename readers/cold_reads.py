"""A reader attached to a registry: the reads that miss the cache, and keeping up with what changes.

Everything here happens inside the gate, which keeps transactions from crossing a fork. What the hot paths of
`Registry` look at are plain attributes set from here: `_word` and `_valid`, which are equal as long as everything
cached is the newest there is, and the dictionaries of the cache. `_valid` equals no word while nothing is cached:
looking something up in vain costs more than not looking. `_followed` is the word whose changes the cache has seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import lmdb

from dspy_registry.readers.cache import Answers, Cache
from dspy_registry.readers.freshness import Freshness
from dspy_registry.readers.observed import UsageCache
from dspy_registry.readers.plan import Plan, answer, dependencies
from dspy_registry.readers.queries import Queries, not_a_name
from dspy_registry.registry_store import layout, lookup
from dspy_registry.registry_store.changes import State, state_codec
from dspy_registry.registry_store.codec import INTACT, crc32, decode_info
from dspy_registry.registry_store.environment import Environment, short_reads
from dspy_registry.registry_store.errors import (
    FormatVersionError,
    RegistryNotFoundError,
    StoreClosedError,
    StoreError,
    UnknownModuleError,
)
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.revision import RETIRED, RevisionFile, is_retired
from dspy_registry.registry_store.sharing import attach, detach, run_deferred, shared_lock
from dspy_registry.registry_store.usage import ModuleUsage, load_all, load_usage

_LOOK_FOR_REPLACEMENT_EVERY: Final = 1.0  # seconds
_ATTACH_TRIES: Final = 20

_monotonic = time.monotonic

T = TypeVar("T")


class Attached(Queries):
    """The cold side of `Registry`."""

    __slots__ = (
        "_by_capability",
        "_by_category",
        "_by_question",
        "_cache",
        "_environment",
        "_file",
        "_followed",
        "_freshness",
        "_look_again_at",
        "_min_observed_calls",
        "_records",
        "_usage",
        "_usage_word",
        "_valid",
        "_weights",
        "_word",
        "path",
    )

    path: Path
    _word: memoryview[float]
    _valid: float
    _followed: float
    _records: dict[str, ModuleInfo]
    _by_capability: Answers
    _by_category: Answers
    _by_question: Answers
    _look_again_at: float
    _weights: Mapping[str, float]
    _min_observed_calls: int
    _usage: UsageCache
    _usage_word: memoryview[float]

    def __init__(self, path: Path, cache_size: int, weights: Mapping[str, float], min_observed_calls: int) -> None:
        self.path = path
        self._weights = weights
        self._min_observed_calls = min_observed_calls
        self._cache = Cache(cache_size)
        self._environment: Environment | None = None
        self._open()

    def close(self) -> None:
        """Give up everything held. Snapshots stay open. Does nothing the second time."""
        environment = self._environment
        if environment is None:
            return
        with environment.gate:  # not under the hands of a thread that reads
            if self._environment is not environment:
                return
            self._environment = None
            self._valid = self._followed = RETIRED
            self._cache.forget()
        detach(environment)

    # Reads that miss the cache

    def _fetch(self, name: str) -> ModuleInfo | None:
        """The first read of a full name, written out. Everything else goes to `_fetch_again`.

        The read itself has no gate: it keeps nothing that a change could make untrue. It only has to be seen by a
        fork, which waits for all that is in flight.
        """
        word = self._word[()]
        if word != self._followed or _monotonic() > self._look_again_at:
            return self._fetch_with_care(name)
        # After the word: whoever opens the registry anew first makes `_followed` equal nothing.
        cache = self._cache
        environment = self._environment
        if name not in cache.marks and environment is not None:
            environment.in_flight.append(name)
            try:
                txn = environment.begin(environment.modules)
                try:
                    value = txn.get(name.encode())
                finally:
                    txn.abort()
            except (lmdb.Error, UnicodeEncodeError, AttributeError):
                value = None  # what is wrong, with the registry or the name, is found out with care
            finally:
                environment.in_flight.pop()
            if value is not None:
                # `info_of`, without the call where all is well.
                info = decode_info(value).info if crc32(value) == INTACT else lookup.info_of(value, name)
                if len(cache.marks) < cache.marks_bound:
                    cache.marks.add(name)
                elif cache.is_due(name):
                    self._keep(word, cache, name, info)  # in flight no more: it takes the gate, which a fork may hold
                return info
        return self._fetch_again(name)

    def _exact(self, name: object) -> ModuleInfo | None:
        if self._word[()] == self._valid:
            info = self._records.get(name)  # type: ignore[call-overload]  # as a dict, any key may be asked for
            if info is not None:
                return info if info.name == name else None
        return super()._exact(name)

    def _fetch_again(self, name: str) -> ModuleInfo | None:
        """One that was read before, and may be worth keeping this time."""
        word = self._word[()]
        cache = self._cache
        if word != self._followed or name not in cache.marks or _monotonic() > self._look_again_at:
            return self._fetch_with_care(name)
        info = cache.records.get(name)
        if info is not None:
            return info
        info = self._read(name)
        if info is None:
            return self._fetch_with_care(name)
        self._keep(word, cache, name, info)
        return info

    def _read(self, name: str) -> ModuleInfo | None:
        """The module of a full name, in flight; None also where that cannot be told."""
        environment = self._live()
        environment.in_flight.append(name)
        try:
            txn = environment.begin(environment.modules)
            try:
                value = txn.get(name.encode())
            finally:
                txn.abort()
        except (lmdb.Error, UnicodeEncodeError, AttributeError):
            return None
        finally:
            environment.in_flight.pop()
        return None if value is None else lookup.info_of(value, name)

    def _keep(self, word: float, cache: Cache, name: str, info: ModuleInfo) -> None:
        """Keep what was read after the word was: as long as the cache is still at that word, later changes drop it."""
        with self._live().gate:
            if self._followed == word and self._cache is cache and name not in self._freshness.pending:
                cache.put(name, info)
                self._offer()

    def _offer(self) -> None:
        """Let the hot paths look at what the cache holds now."""
        self._records = self._cache.records
        self._valid = RETIRED if self._cache.is_empty else self._followed

    def _fetch_with_care(self, name: str) -> ModuleInfo | None:
        if not isinstance(name, str):
            raise not_a_name(name)
        return self._in_gate(partial(self._find, name))

    def _find(self, name: str) -> ModuleInfo | None:
        cache = self._cache
        # Where the word could not be followed, everything is pending, and what is kept may be out of date.
        info = None if name in self._freshness.pending else cache.records.get(name)
        if info is None:
            with self._live().reading() as txn:
                info = lookup.find_info(txn, self._live().dbs, name)
            if info is not None and name not in self._freshness.pending and cache.is_due(name):
                cache.put(name, info)
        self._offer()
        return info

    def _ask(self, answers: Answers, question: Any, plan: Plan) -> tuple[str, ...]:
        """The answer of a query, kept in one of the cache's dictionaries."""

        def ask() -> tuple[str, ...]:
            with self._live().reading() as txn:
                names = answer(txn, self._live().dbs, plan)
            terms = dependencies(plan)
            if self._freshness.pending.isdisjoint(terms):
                self._cache.put_answer(answers, question, terms, names)
                self._offer()
            return names

        return self._in_gate(ask)

    def usages(self) -> list[ModuleUsage]:
        """What real calls have shown of each module that has some, registered or not, most used first."""
        self._catch_up()
        with self._live().reading() as txn:
            return load_all(txn, self._live().dbs)

    def _usage_of(self, name: str) -> ModuleUsage:
        known = self._usage
        if self._usage_word[()] == known.word:
            try:
                return known.rows[name]
            except KeyError:
                pass
        return self._in_gate(partial(self._load_usage, name))

    def _load_usage(self, name: str) -> ModuleUsage:
        word = self._usage_word[()]
        with self._live().reading() as txn:
            usage = load_usage(txn, self._live().dbs, name) or ModuleUsage(name)
        if self._usage.word != word or self._usage.is_full:
            self._usage = UsageCache(word)
        self._usage.put(name, usage)
        return usage

    def _answer(self, plan: Plan) -> tuple[str, ...]:
        if self._word[()] == self._valid:
            known = self._by_question.get(plan)
            if known is not None:
                return known
        return self._ask(self._by_question, plan, plan)

    def _unknown(self, name: object) -> UnknownModuleError:
        with self._live().reading() as txn:
            return lookup.unknown(txn, self._live().dbs, name)

    def _state(self) -> State:
        self._catch_up()
        with self._live().reading() as txn:
            state: State = state_codec.load(txn.get(layout.META_STATE, None, self._live().dbs.meta))
            return state

    # Keeping up

    def _live(self) -> Environment:
        environment = self._environment
        if environment is None:
            raise StoreClosedError(f"{self!r} was closed.", remedy="Open another Registry.")
        return environment

    def _in_gate(self, work: Callable[[], T]) -> T:
        """What `work` returns, done inside the gate with the cache valid for the word as it is now.

        The gate is only ever taken by `with`: a signal's handler may raise between any other two steps, and a gate
        that stays taken would stop every other thread, and every fork.
        """
        run_deferred()
        while True:
            environment = self._live()
            with environment.gate:
                if environment is self._environment and self._is_in_step():
                    return work()
            self._reopen()

    def _catch_up(self) -> None:
        """Have the cache valid for the word as it is now, and the registry be the one that is there."""
        self._in_gate(lambda: None)

    def _is_in_step(self) -> bool:
        """Brings the cache in step; False when the registry was restored or replaced, and must be opened anew."""
        if self._word[()] != self._followed:
            self._followed = self._freshness.advance()
            self._offer()
            if self._is_retired():
                return False
        environment = self._live()
        if environment.is_retired:
            return False
        now = _monotonic()
        if now > self._look_again_at or environment.lmdb is None:
            if not self._file.is_current():
                return False
            self._look_again_at = now + _LOOK_FOR_REPLACEMENT_EVERY
        return True

    def _is_retired(self) -> bool:
        return is_retired(self._word[()])

    def _look_now(self) -> None:
        """See at once whether the registry is still the same one."""
        self._look_again_at = 0.0
        self._catch_up()

    def _reopen(self) -> None:
        """Nothing known of the former registry holds. Outside any gate, since it shares environments."""
        with shared_lock:
            former = self._live()
            with former.gate:  # nobody who still reads the former registry may fill the cache of the new one
                if self._file.is_current() and not self._is_retired() and not former.is_retired:
                    return
                self._valid = self._followed = RETIRED
                if not former.writable and not former.open_snapshots:
                    former.close()  # where files were copied over these, its slots and pages are not what they were
                self._open()
            detach(former)

    def _open(self) -> None:
        for _ in range(_ATTACH_TRIES):
            environment = attach(self.path)
            try:
                file = RevisionFile(self.path)
                if _belongs(environment, file):
                    break
            except BaseException:
                detach(environment)
                raise
            detach(environment)
            time.sleep(0.01)  # it is being replaced at this moment
        else:
            raise StoreError(f"{self.path}: data and revision file are not of one registry.")
        cache = Cache(self._cache.size)  # only now: where opening failed, the former cache is still kept up with
        self._cache = cache
        self._environment = environment
        self._file = file
        self._freshness = Freshness(environment, file, cache)
        self._records = cache.records
        self._by_capability = cache.by_capability
        self._by_category = cache.by_category
        self._by_question = cache.by_question
        self._look_again_at = _monotonic() + _LOOK_FOR_REPLACEMENT_EVERY
        self._valid = self._followed = RETIRED
        self._word = file.word
        self._usage = UsageCache()
        self._usage_word = file.usage_word


short_reads.update((Attached._fetch.__code__, Attached._read.__code__))


def _belongs(environment: Environment, file: RevisionFile) -> bool:
    """Whether environment and revision file are of one registry, in the format this release reads."""
    with environment.reading() as txn:
        meta = environment.dbs.meta
        version = txn.get(layout.META_FORMAT, None, meta)
        if version is None:
            raise RegistryNotFoundError(f"the registry in {environment.folder} is not complete yet.")
        if int(version) != layout.FORMAT_VERSION:
            raise FormatVersionError(int(version), layout.FORMAT_VERSION)
        is_retired = file.word[()] != file.word[()]
        return not is_retired and bool(txn.get(layout.META_ID, None, meta) == file.registry_id)
