"""A registry that is kept open: following its revision word, and opening it again when it was restored or replaced.

Everything here happens inside the gate, which keeps transactions from crossing a fork. The hot paths of `Registry` look
only at plain attributes that are set here. `_word` and `_valid` are equal as long as everything cached is the newest
there is. `_valid` equals no word while the cache is empty: a look-up that cannot hit costs more than none.
`_followed` is the word whose changes the cache has seen. `_step` is what a read outside the gate needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeAlias, TypeVar

from dspy_registry.readers.cache import Cache, Results, UsageCache
from dspy_registry.readers.freshness import Freshness
from dspy_registry.readers.leases import Leases, leases_in
from dspy_registry.readers.policies import PolicyCache
from dspy_registry.readers.queries import Queries
from dspy_registry.registry_store import layout, lookup
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import (
    CorruptRecordError,
    RegistryNotFoundError,
    StoreClosedError,
    StoreError,
)
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.opening import known_format
from dspy_registry.registry_store.own_place import OwnPlace, own_place
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.revision import (
    RETIRED,
    RevisionFile,
    is_retired,
    missing_commits,
    private_word,
    private_words,
)
from dspy_registry.registry_store.selection import Selection
from dspy_registry.registry_store.sharing import attach, detach, run_deferred, shared_lock

_LOOK_FOR_REPLACEMENT_EVERY: Final = 1.0  # seconds
_ATTACH_TRIES: Final = 20

_told: Final[set[str]] = set()

T = TypeVar("T")
P = ParamSpec("P")

Step: TypeAlias = "tuple[Environment, memoryview[float], memoryview[float], Cache]"
"""The environment, its two words as they are, these two as they were when the cache had followed them, and the cache.

One tuple, because they must be of one registry: it is replaced whenever any of them is, and never changed. Words take
no earlier value again. So if both are now what they were, they were that all the time in between.
"""


class Attachment(Queries):
    """What a `Registry` keeps open and follows. The reads themselves are in `Registry` and `cold_reads`."""

    __slots__ = (
        "_by_arguments",
        "_by_capability",
        "_by_category",
        "_cache",
        "_environment",
        "_every_word",
        "_file",
        "_followed",
        "_freshness",
        "_is_new",
        "_leases",
        "_look_again_at",
        "_min_observed_calls",
        "_own",
        "_policies",
        "_records",
        "_selections",
        "_step",
        "_usage",
        "_usage_word",
        "_valid",
        "_weights",
        "_word",
        "_words",
        "path",
    )

    path: Path
    _word: memoryview[float]
    _words: memoryview[float]
    _every_word: memoryview[float]
    _valid: memoryview[float]
    _followed: float
    _records: dict[str, ModuleInfo]
    _selections: dict[str, Selection]
    _by_capability: Results
    _by_category: Results
    _by_arguments: Results
    _look_again_at: float
    _weights: Mapping[str, float]
    _min_observed_calls: int
    _usage: UsageCache
    _own: OwnPlace
    _policies: PolicyCache
    _leases: Leases
    _step: Step | None
    _is_new: bool
    _usage_word: memoryview[float]

    def __init__(self, path: Path, cache_size: int, weights: Mapping[str, float], min_observed_calls: int) -> None:
        self.path = path
        self._weights = weights
        self._min_observed_calls = min_observed_calls
        self._valid = private_word(RETIRED)
        self._cache = Cache(cache_size)
        self._environment: Environment | None = None
        self._own = own_place(path)
        self._leases = leases_in(path)
        self._open()

    def close(self) -> None:
        """Close the registry; its snapshots stay open. A second call does nothing."""
        environment = self._environment
        if environment is None:
            return
        with environment.gate:  # no thread is reading then
            if self._environment is not environment:
                return
            self._step = self._environment = None
            self._valid[()] = self._followed = RETIRED
            self._cache.forget()
            self._usage = UsageCache()
        detach(environment)

    def _live(self) -> Environment:
        environment = self._environment
        if environment is None:
            raise StoreClosedError(f"{self!r} was closed.", remedy="Open another Registry.")
        return environment

    def _in_transaction(
        self, read: Callable[Concatenate[Transaction, Databases, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `read` returns, called with a read transaction of the newest commit."""
        environment = self._live()
        with environment.reading() as txn:
            return read(txn, environment.dbs, *args, **kwargs)

    def _in_gate(self, work: Callable[[], T]) -> T:
        """Bring the cache up to the word, then do `work` inside the gate. Returns what `work` returns.

        Only `with` may take the gate: a signal's handler can raise between any other two steps, and a gate that
        stays taken would stop every other thread and every fork.
        """
        run_deferred()
        while True:
            environment = self._live()
            with environment.gate:
                if environment is self._environment and self._is_in_step():
                    return work()
            self._reopen()

    def _catch_up(self) -> None:
        """Make the cache valid for the word as it is now, of the registry that is in the folder now."""
        self._in_gate(lambda: None)

    def _is_in_step(self) -> bool:
        """Bring the cache up to the word. False: the registry was restored or replaced, and must be opened again."""
        environment = self._live()
        step = self._step
        if step is None or step[1] != step[2]:
            self._step = None  # an interrupt must not leave one of which only half is true
            if self._word[()] != self._followed and not self._has_advanced():
                return False
            if not is_retired(self._followed):
                seen = private_words(self._followed, self._usage_word[()])
                self._step = environment, self._words, seen, self._cache
        if environment.is_lost:
            return False
        now = time.monotonic()
        if now > self._look_again_at or not environment.is_open:
            if not self._file.is_current():
                return False
            self._look_again_at = now + _LOOK_FOR_REPLACEMENT_EVERY
        return True

    def _has_advanced(self) -> bool:
        """Bring the cache up to the word. False: the file was retired."""
        self._followed = self._freshness.advance()
        self._offer()
        if is_retired(self._word[()]):
            return False
        if self._is_new:
            self._is_new = False
            _tell_what_is_missing(self._live(), self._file)
        return True

    def _look_now(self) -> None:
        """Look at once whether the folder still holds the same registry."""
        self._look_again_at = 0.0
        self._catch_up()

    def _reopen(self) -> None:
        """Open the registry that is in the folder now, and forget the former one. Call it outside any gate."""
        with shared_lock:
            former = self._live()
            with former.gate:  # no read of the former registry may fill the cache of the new one
                if self._file.is_current() and not is_retired(self._word[()]) and not former.is_lost:
                    return
                self._step = None
                self._valid[()] = self._followed = RETIRED
                if not former.writable and not former.open_snapshots:
                    former.close()  # if files were copied over these, its slots and pages have changed
                self._open()
            detach(former)

    def _open(self) -> None:
        for _ in range(_ATTACH_TRIES):
            environment = attach(self.path)
            try:
                with environment.gate:
                    file = environment.visibility.file()
                if _belongs(environment, file):
                    break
            except BaseException:
                detach(environment)
                raise
            detach(environment)
            time.sleep(0.01)  # it is being replaced at this moment
        else:
            raise StoreError(
                f"{self.path}: data.mdb and the revision file belong to different registries.",
                remedy="Start the writer: it writes a revision file that belongs to this data.mdb.",
            )
        self._step = None
        cache = Cache(self._cache.size)  # only now: if opening failed, the former cache is still in use
        self._cache = cache
        self._environment = environment
        self._file = file
        self._freshness = Freshness(environment, file, cache)
        self._records = cache.records
        self._selections = cache.selections
        self._by_capability = cache.by_capability
        self._by_category = cache.by_category
        self._by_arguments = cache.by_arguments
        self._look_again_at = time.monotonic() + _LOOK_FOR_REPLACEMENT_EVERY
        self._valid[()] = self._followed = RETIRED
        self._word = file.word
        self._words = file.words
        self._every_word = file.every_word
        self._usage = UsageCache()
        self._policies = PolicyCache()
        self._usage_word = file.usage_word
        self._is_new = True

    def _offer(self) -> None:
        """Let the hot paths see what the cache holds now."""
        self._records = self._cache.records
        self._valid[()] = RETIRED if self._cache.is_empty else self._followed


def _belongs(environment: Environment, file: RevisionFile) -> bool:
    """Whether the two files belong to one registry. Raises FormatVersionError for a format unknown to this release."""
    with environment.reading() as txn:
        meta = environment.dbs.meta
        version = txn.get(layout.META_FORMAT, None, meta)
        if version is None:
            raise RegistryNotFoundError(f"the registry in {environment.folder} is not complete yet.")
        if known_format(version) != environment.dbs.format:  # it was not complete when it was opened
            return False
        return not is_retired(file.word[()]) and bool(txn.get(layout.META_ID, None, meta) == file.registry_id)


def _tell_what_is_missing(environment: Environment, file: RevisionFile) -> None:
    """Log it once a process, where the word says that more was committed than data.mdb holds."""
    word = file.word[()]
    try:
        with environment.reading() as txn:
            revision = lookup.load_state(txn, environment.dbs).revision
    except CorruptRecordError:  # each read that needs the head says so
        return
    missing = missing_commits(environment.folder, word, revision)
    if missing is not None and missing not in _told:
        _told.add(missing)
        import logging  # loads much, and is seldom needed here

        logging.getLogger("dspy_registry").error("%s", missing)
