"""The registry as a worker process reads it.

Each method that has a hot path has it written out: compare the revision word with the word at which the cache is
valid, then look up a dict. It takes no lock, makes no system call and begins no transaction. What the cache does not
have is read in `cold_reads`, and so is what cannot be a key, as a list: it is refused there. A method that `Queries`
has too is documented there.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, overload

import msgspec

from dspy_registry.readers.deciding import Deciding
from dspy_registry.readers.observed import DECLARED, DEFAULT_MIN_OBSERVED_CALLS
from dspy_registry.readers.plan import plan_find, plan_term
from dspy_registry.readers.routing import CostWeights, Recommendation
from dspy_registry.registry_store import lookup
from dspy_registry.registry_store.arguments import check_text, plain_name, typed, words_of
from dspy_registry.registry_store.changes import Change
from dspy_registry.registry_store.errors import InvalidArgumentError, RegistryNotFoundError
from dspy_registry.registry_store.fork_wait import let_fork_pass
from dspy_registry.registry_store.labels import Label
from dspy_registry.registry_store.paths import registry_path
from dspy_registry.registry_store.records import ModuleInfo, StoredModule
from dspy_registry.registry_store.revision import is_sound
from dspy_registry.registry_store.selection import Resolved
from dspy_registry.registry_store.sharing import defer, detach, shared_lock

if TYPE_CHECKING:
    from dspy_registry.readers.snapshot import Snapshot
    from dspy_registry.readers.watched import ChangeWithRecords

DEFAULT_CACHE_SIZE: Final = 8192

_PAUSE: Final = 0.02  # seconds between two attempts to open a registry that is waited for


class Registry(Deciding):
    """A registry open for reading. Threads may share it; after fork it works in parent and child.

    `path` is the registry's folder. None means $DSPY_REGISTRY; if that is empty or not set, `dspy-registry` in the
    user's data directory ($XDG_DATA_HOME, else ~/.local/share). `cache_size` is the most decoded records that this
    object keeps (0: none). `cost_weights` are the weights of `estimated_cost` (None: the defaults). The bases
    `observed` and `auto` use what calls have shown once there are `min_observed_calls` of a size (0: one is enough).
    `wait` is how many seconds to wait for a registry that is not there or not complete yet (0: do not wait).

    Every read sees all changes that were acknowledged, in any process, before it began. Opening raises
    RegistryNotFoundError, StorePermissionError, FormatVersionError, StoreError, InvalidArgumentError.
    """

    __slots__ = ()

    @typed
    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        cache_size: int = DEFAULT_CACHE_SIZE,
        cost_weights: CostWeights | None = None,
        min_observed_calls: int = DEFAULT_MIN_OBSERVED_CALLS,
        wait: float = 0.0,
    ) -> None:
        wrong = [
            f"{argument} is {value}; it cannot be negative."
            for argument, value in (("cache_size", cache_size), ("min_observed_calls", min_observed_calls))
            if value < 0
        ]
        if not wait >= 0:  # NaN, too
            wrong.append(f"wait is {wait!r}; it is a number of seconds, 0 or more.")
        if wrong:
            raise InvalidArgumentError(" ".join(wrong))
        weights = msgspec.structs.asdict(cost_weights or CostWeights())
        attempt = partial(super().__init__, registry_path(path), cache_size, weights, min_observed_calls)
        if wait:
            self._open_when_complete(attempt, time.monotonic() + wait)
        else:
            attempt()

    def _open_when_complete(self, attempt: Callable[[], None], deadline: float) -> None:
        """Open it once its first commit, which adds the core modules, is there."""
        while True:
            try:
                attempt()
                if self.revision:
                    return
                self.close()
                missing = RegistryNotFoundError(f"the registry in {self.path} is not complete yet.")
            except RegistryNotFoundError as error:
                missing = error
            if time.monotonic() >= deadline:
                raise missing
            time.sleep(_PAUSE)

    def __repr__(self) -> str:
        if self._environment is None:
            return f"Registry({str(self.path)!r}, closed)"
        return f"Registry({str(self.path)!r}, {self._cache!r})"

    # Hot paths

    def get_module(self, name: str) -> ModuleInfo:
        if self._word == self._valid:
            try:
                return self._records[name]
            except (KeyError, TypeError):
                pass
        info = self._read_first(name)
        if info is None:
            info = self._fetch_again(name)
            if info is None:
                raise self._unknown(name)
        return info

    def resolve(self, name: str, *, key: str | None = None) -> Resolved:
        check_text("key", key)
        if self._word == self._valid:
            try:
                return self._selections[name].choose(key)
            except (KeyError, TypeError):
                pass
        return self._select(name).choose(key)

    def get_pool_type(self, name: str) -> str:
        if self._word == self._valid:
            try:
                return self._records[name].pool_type
            except (KeyError, TypeError):
                pass
        return self.get_module(name).pool_type

    def has_native(self, name: str) -> bool:
        if self._word == self._valid:
            try:
                return self._records[name].native_available
            except (KeyError, TypeError):
                pass
        info = self._fetch(name)
        return info is not None and info.native_available

    def estimate_duration(self, name: str, input_size: str = "normal", basis: str = DECLARED) -> int:
        kept = self._advice
        if self._words == kept.words:
            try:
                return kept.estimates[name, input_size, basis]
            except (KeyError, TypeError):
                pass
        return self._estimate_and_keep(name, input_size, basis)

    def routing_recommendation(
        self,
        name: str,
        # Give these by name. They are not keyword-only, because filling those in takes as long as half of all the rest.
        input_size: int | None = None,
        optimize_latency: bool = False,
        basis: str = DECLARED,
    ) -> Recommendation:
        kept, own = self._advice, self._own
        if self._words == kept.words:
            try:
                if basis == DECLARED or not own.tellers:
                    return kept.recommendations[name, input_size, optimize_latency, basis]
                return kept.recommendations[name, input_size, optimize_latency, basis, own.changes()]
            except (KeyError, TypeError):
                pass
        return self._recommend_and_keep(name, input_size, optimize_latency, basis)

    def find_by_capability(self, capability: str) -> tuple[str, ...]:
        if self._word == self._valid:
            try:
                return self._by_capability[capability]
            except (KeyError, TypeError):
                pass
        return self._execute_and_keep(self._by_capability, capability, plan_term("capability", capability))

    def find_by_category(self, category: str) -> tuple[str, ...]:
        if self._word == self._valid:
            try:
                return self._by_category[category]
            except (KeyError, TypeError):
                pass
        return self._execute_and_keep(self._by_category, category, plan_term("category", category))

    def find(
        self,
        capabilities: str | Iterable[str] | None = (),
        category: str | None = None,
        pool_type: str | None = None,
        native: bool | None = None,
        gpu: bool | None = None,
        max_memory: str | None = None,
        max_compute: str | None = None,
        any_capabilities: str | Iterable[str] | None = None,
        without_capabilities: str | Iterable[str] | None = None,
    ) -> tuple[str, ...]:
        if any_capabilities is not None or without_capabilities is not None:  # kept by its plan
            others = (category, pool_type, native, gpu, max_memory, max_compute)
            return self._execute(plan_find(capabilities, *others, any_capabilities, without_capabilities))
        if self._word == self._valid:
            try:
                # Hashing the key takes a third of the time, so the usual arguments have a short one.
                if category is None and native is None and gpu is None and max_compute is None:
                    return self._by_arguments[capabilities, pool_type, max_memory]
                return self._by_arguments[capabilities, category, pool_type, native, gpu, max_memory, max_compute]
            except (KeyError, TypeError):
                pass
        if capabilities is not None and type(capabilities) is not str:
            capabilities = words_of("a capability", capabilities)
        every = (capabilities, category, pool_type, native, gpu, max_memory, max_compute)
        is_usual = category is None and native is None and gpu is None and max_compute is None
        arguments = (capabilities, pool_type, max_memory) if is_usual else every
        return self._execute_and_keep(self._by_arguments, arguments, plan_find(*every))

    # Consistency

    @property
    def revision(self) -> int:
        """The number of the newest commit; each commit adds 1."""
        word = self._word[()]
        if self._environment is not None and is_sound(word) and word % 2 == 0:
            return int(word) // 2
        return self._state().revision

    @property
    def registry_id(self) -> bytes:
        """16 random bytes, new for each registry created or restored. A replacement is seen within a second."""
        self._catch_up()
        return self._file.registry_id

    @property
    def committed_at(self) -> int:
        """When the newest revision was committed, in milliseconds since the epoch."""
        return self._state().committed_at

    def snapshot(self) -> Snapshot:
        """The newest revision, for any number of queries. Close it soon, and before a fork.

        Raises StoreError when no reader slot is free; a snapshot takes up to two.
        """
        from dspy_registry.readers.snapshot import Snapshot  # most workers take none

        let_fork_pass(self._live().holders)
        self._look_now()
        with shared_lock:  # nobody lets go of the environment before the snapshot has it
            return Snapshot(self._live(), self._weights, self._min_observed_calls)

    @overload
    def watch(
        self,
        since: int | None = None,
        *,
        names: str | Iterable[str] | None = None,
        records: Literal[False] = False,
        timeout: float | None = None,
        poll: float = 0.01,
    ) -> Iterator[Change]: ...
    @overload
    def watch(
        self,
        since: int | None = None,
        *,
        names: str | Iterable[str] | None = None,
        records: Literal[True],
        timeout: float | None = None,
        poll: float = 0.01,
    ) -> Iterator[ChangeWithRecords]: ...
    def watch(
        self,
        since: int | None = None,
        *,
        names: str | Iterable[str] | None = None,
        records: bool = False,
        timeout: float | None = None,
        poll: float = 0.01,
    ) -> Iterator[Any]:
        """Every change after revision `since`, as it is committed. None: from now on; 0: all that the log holds.

        It ends when nothing has changed for `timeout` seconds (None: never). `names` are full names, in which `*`, `?`
        and `[abc]` are as in file names: only what concerns such names is told (None: everything). With `records`, a
        change also has the records that it made. The writer wakes the watcher; where there is no futex it looks at the
        revision word every `poll` seconds. A change with `everything` stands for all that the log no longer holds.
        Raises InvalidArgumentError for a negative number, TypeError for another type.
        """
        from dspy_registry.readers import watch  # most readers watch nothing

        return watch.changes(watch.follower(self, since, names, records, timeout, poll))

    def watch_async(
        self,
        since: int | None = None,
        *,
        names: str | Iterable[str] | None = None,
        records: bool = False,
        timeout: float | None = None,
        poll: float = 0.01,
    ) -> AsyncIterator[Change]:
        """`watch` for asyncio, with the same arguments and errors. It needs no thread for each watcher."""
        from dspy_registry.readers import watch

        return watch.changes_async(watch.follower(self, since, names, records, timeout, poll))

    def describe(self, name: str) -> StoredModule:
        name = plain_name(name)
        self._catch_up()
        return self._in_transaction(lookup.load_stored, name)

    def labels(self, name: str) -> dict[str, Label]:
        name = plain_name(name)
        self._catch_up()
        return self._in_transaction(lookup.load_labels, name)

    def implied_capabilities(self, name: str) -> tuple[str, ...]:
        with self._brief_snapshot() as snapshot:
            return snapshot.implied_capabilities(name)

    def overridden(self, name: str) -> tuple[str, ...]:
        with self._brief_snapshot() as snapshot:
            return snapshot.overridden(name)

    def history(self, name: str) -> tuple[StoredModule, ...]:
        with self._brief_snapshot() as snapshot:
            return snapshot.history(name)

    def __len__(self) -> int:
        self._catch_up()
        return self._in_transaction(lookup.count_modules)

    @contextmanager
    def _brief_snapshot(self) -> Iterator[Snapshot]:
        """A snapshot inside the gate, so that no fork can happen while it is open."""
        with shared_lock:  # before the gate: everything takes these two in this order
            self._catch_up()
            with self._live().gate, self.snapshot() as snapshot:
                yield snapshot

    def __copy__(self) -> Registry:
        """Itself: the cache and the word it is valid at belong together. `dspy.Module.deepcopy` copies members."""
        return self

    def __deepcopy__(self, _: object) -> Registry:
        return self

    def __reduce__(self) -> tuple[Callable[..., Registry], tuple[object, ...]]:
        """Unpickling opens the same registry."""
        return _opened, (self.path, self._cache.size, CostWeights(**self._weights), self._min_observed_calls)

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        environment = getattr(self, "_environment", None)
        if environment is not None:
            defer(partial(detach, environment))


def _opened(path: Path, cache_size: int, weights: CostWeights, min_observed_calls: int) -> Registry:
    return Registry(path, cache_size=cache_size, cost_weights=weights, min_observed_calls=min_observed_calls)
