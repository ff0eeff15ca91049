"""A snapshot: any number of queries, all of one revision."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NoReturn

import lmdb

from dspy_registry.readers.plan import Plan, answer
from dspy_registry.readers.queries import Queries, not_a_name
from dspy_registry.registry_store import layout, lookup
from dspy_registry.registry_store.changes import Change, State, change_codec, state_codec
from dspy_registry.registry_store.codec import INTACT, crc32, decode_info
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import ForkedSnapshotError, StoreClosedError, UnknownModuleError
from dspy_registry.registry_store.handles import Transaction, leak, translated
from dspy_registry.registry_store.history import Versions, load_versions
from dspy_registry.registry_store.records import ModuleInfo, StoredModule
from dspy_registry.registry_store.sharing import defer, detach, share
from dspy_registry.registry_store.usage import ModuleUsage, calls_lost, load_all, load_usage


class Snapshot(Queries):
    """The registry as it was when the snapshot was taken. Close it soon: what it sees cannot be reclaimed meanwhile.

    Use it from one thread at a time, and not across fork. `len`, iteration and every query are of `revision`.
    """

    __slots__ = (
        "_dbs",
        "_environment",
        "_generation",
        "_min_observed_calls",
        "_txn",
        "_view",
        "_weights",
        "revision",
    )

    def __init__(self, environment: Environment, weights: Mapping[str, float], min_observed_calls: int) -> None:
        self._txn: Transaction = None
        self._weights = weights
        self._min_observed_calls = min_observed_calls
        self._environment = share(environment)
        try:
            with environment.gate:
                environment.open()
                txn, self._view = _begin_both(environment)
                self._dbs = environment.dbs
                self._generation = environment.generation
                environment.open_snapshots += 1
                self._txn = txn  # from here on it is for `close` to give all of it back
        except BaseException as error:
            if self._txn is None:
                detach(environment)
            if isinstance(error, lmdb.Error):
                raise translated(error, environment.folder) from error
            raise
        self.revision = self._state().revision

    def __repr__(self) -> str:
        state = "closed" if self._txn is None else f"revision {self.revision}"
        return f"Snapshot({str(self._environment.folder)!r}, {state})"

    def close(self) -> None:
        """End the snapshot; every memoryview from `raw` is dead from now on. Does nothing the second time."""
        txn, self._txn = self._txn, None
        if txn is not None:
            _end(self._environment, self._generation, txn, self._view)

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise TypeError("a snapshot is of one process and one `with`: it cannot be copied or pickled")

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_txn", None) is not None:
            defer(partial(_end, self._environment, self._generation, self._txn, self._view))

    def raw(self, name: str) -> memoryview:
        """The stored bytes of a module's record, checksum included, without a copy.

        A view into the map, valid only inside the snapshot: read after it has closed, it may show anything or crash
        the process. `name` is a full name. Raises UnknownModuleError.
        """
        self._live()
        value = self._view.get(name.encode(), None, self._dbs.modules) if lookup.is_askable(name) else None
        if value is None:
            raise self._unknown(name)
        view: memoryview = value
        return view

    def describe(self, name: str) -> StoredModule:
        """The module with its version, revision, time and source. Raises UnknownModuleError, AmbiguousNameError."""
        if not isinstance(name, str):
            raise not_a_name(name)
        return lookup.describe(self._live(), self._dbs, name)

    def history(self, name: str) -> tuple[StoredModule, ...]:
        """The versions kept of a module, newest first: the one in force, and the last 16 that it replaced.

        `name` is a full name, an alias or a short name. Of a module that was unregistered, by its full name, what is
        still kept. Raises UnknownModuleError when that is nothing, AmbiguousNameError, CorruptRecordError naming
        the version that is damaged.
        """
        return tuple(kept.load() for kept in self._versions(name).kept)

    def _versions(self, name: str) -> Versions:
        """The same, not decoded yet."""
        try:
            return load_versions(self._live(), self._dbs, name)
        except lmdb.Error as error:
            raise translated(error, self._environment.folder) from error

    def usages(self) -> list[ModuleUsage]:
        """What real calls had shown of each module that had some, registered or not, most used first."""
        return load_all(self._live(), self._dbs)

    def calls_lost(self) -> int:
        """Calls over the registry's life that no statistics hold: there was no room to keep them until then."""
        return calls_lost(self._live(), self._dbs)

    def _usage_of(self, name: str) -> ModuleUsage:
        return load_usage(self._live(), self._dbs, name) or ModuleUsage(name)

    @property
    def committed_at(self) -> int:
        """When this revision was committed, in milliseconds since the epoch."""
        return self._state().committed_at

    def changes_since(self, revision: int) -> list[Change]:
        """All changes after a revision up to this one, oldest first.

        One with `everything` stands for those that the log no longer holds; it is empty when there are none, and one
        of `everything` when `revision` is of another registry's future.
        """
        if revision == self.revision:
            return []
        cursor = self._live().cursor(self._dbs.changes)
        if revision > self.revision or not cursor.set_range(layout.revision_key(revision + 1)):
            return [Change(self.revision, self.committed_at, everything=True)]
        logged: list[Change] = [change_codec.load(value) for _, value in cursor]
        if logged[0].revision > revision + 1:
            skipped = Change(logged[0].revision - 1, logged[0].committed_at, everything=True)
            return [skipped, *logged]
        return logged

    def __len__(self) -> int:
        entries: int = self._live().stat(self._dbs.modules)["entries"]
        return entries

    def _state(self) -> State:
        state: State = state_codec.load(self._live().get(layout.META_STATE, None, self._dbs.meta))
        return state

    def _live(self) -> Transaction:
        if self._txn is None:
            raise StoreClosedError("the snapshot is closed.", remedy="Query inside its `with`.")
        if self._generation != self._environment.generation:
            raise ForkedSnapshotError("the snapshot belongs to the process this one was forked from.")
        return self._txn

    def _fetch(self, name: str) -> ModuleInfo | None:
        txn = self._live()
        try:
            value = txn.get(name.encode(), None, self._dbs.modules)
        except (lmdb.BadValsizeError, UnicodeEncodeError):  # not a valid name
            return None
        except AttributeError:
            raise not_a_name(name) from None
        except lmdb.Error as error:
            raise translated(error, self._environment.folder) from error
        if value is None:
            return lookup.find_info(txn, self._dbs, name)
        # `info_of`, without the call where all is well.
        return decode_info(value).info if crc32(value) == INTACT else lookup.info_of(value, name)

    def _unknown(self, name: object) -> UnknownModuleError:
        return lookup.unknown(self._live(), self._dbs, name)

    def _answer(self, plan: Plan) -> tuple[str, ...]:
        try:
            return answer(self._live(), self._dbs, plan)
        except lmdb.Error as error:
            raise translated(error, self._environment.folder) from error


def _begin_both(environment: Environment) -> tuple[Transaction, Transaction]:
    """Two transactions on one commit: one copies values out, which is quicker for small ones, one gives views."""
    while True:
        txn, view = environment.begin_reading(), environment.begin_reading(buffers=True)
        if txn.id() == view.id():
            return txn, view
        txn.abort()
        view.abort()


def _end(environment: Environment, generation: int, txn: Transaction, view: Transaction) -> None:
    with environment.gate:
        if generation == environment.generation:
            environment.open_snapshots -= 1  # first: interrupted after that, the transactions end with their objects
            txn.abort()
            view.abort()
        else:  # inherited through fork: its slot is the parent's
            leak(txn, view)
    detach(environment)
