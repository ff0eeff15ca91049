"""A snapshot: any number of queries, all of one revision. A method that `Queries` has too is documented there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import groupby
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

import lmdb

from dspy_registry.readers.decisions import NOTHING_DECIDED
from dspy_registry.readers.plan import Plan, execute
from dspy_registry.readers.policies import ModulePolicy, PolicyCache, load_declarations, load_name_and_pool
from dspy_registry.readers.snapshot_route import DecidingSnapshot
from dspy_registry.registry_store import layout, lookup
from dspy_registry.registry_store.arguments import plain_name, typed
from dspy_registry.registry_store.changes import Alias, Change, alias_codec, change_codec
from dspy_registry.registry_store.codec import INTACT, UNDECODABLE, corrupt, crc32, decode_info, key_text, misplaced
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import ForkedSnapshotError, StoreClosedError, UnknownModuleError
from dspy_registry.registry_store.handles import Database, Databases, Transaction, translated
from dspy_registry.registry_store.history import Versions, kept_names, load_versions
from dspy_registry.registry_store.labels import Label
from dspy_registry.registry_store.layers import CLIENT, beneath, field_sources
from dspy_registry.registry_store.own_place import own_place
from dspy_registry.registry_store.policy import Policy
from dspy_registry.registry_store.policy_rows import load_rows
from dspy_registry.registry_store.postings import words_in_use
from dspy_registry.registry_store.records import ModuleInfo, StoredModule
from dspy_registry.registry_store.scan import items_from, items_with_prefix
from dspy_registry.registry_store.selection import Selection, version_record
from dspy_registry.registry_store.sharing import defer, detach, share
from dspy_registry.registry_store.usage import ModuleUsage, VersionUsage
from dspy_registry.registry_store.usage_rows import (
    InForce,
    calls_lost,
    load_all,
    load_in_force,
    load_usage,
    load_version_usage,
)
from dspy_registry.registry_store.vocabulary import Vocabulary

T = TypeVar("T")
P = ParamSpec("P")


class Snapshot(DecidingSnapshot):
    """The registry at one revision; get one from `Registry.snapshot`. Close it soon: it keeps disk space from reuse.

    `revision` is the number of its commit. `len`, iteration and every query are of that revision. Use it from one
    thread at a time, and not across a fork: a child that uses it gets ForkedSnapshotError. After `close` everything
    raises StoreClosedError.
    """

    __slots__ = (
        "_dbs",
        "_environment",
        "_generation",
        "_min_observed_calls",
        "_own",
        "_policies",
        "_txn",
        "_view",
        "_vocabulary",
        "_weights",
        "revision",
    )

    def __init__(self, environment: Environment, weights: Mapping[str, float], min_observed_calls: int) -> None:
        self._txn: Transaction = None
        self._view: Transaction = None
        self._vocabulary: Vocabulary | None = None
        self._policies: PolicyCache | None = None
        self._weights = weights
        self._min_observed_calls = min_observed_calls
        self._own = own_place(environment.folder)
        self._decisions = NOTHING_DECIDED
        self._environment = share(environment)
        try:
            with environment.gate:
                environment.open()
                self._generation = environment.generation
                txn, self._view, self._usage_word = _begin_both(environment)
                self._dbs = environment.dbs
                self._txn = txn  # from here on, `close` gives all of it back
        except BaseException as error:
            if self._txn is None:
                detach(environment)
            if isinstance(error, lmdb.Error):
                raise translated(error, environment.folder) from error
            raise
        self.revision = self._in_transaction(lookup.load_state).revision

    def __repr__(self) -> str:
        state = "closed" if self._txn is None else f"revision {self.revision}"
        return f"Snapshot({str(self._environment.folder)!r}, {state})"

    def close(self) -> None:
        """End the snapshot. No view from `raw` may be used from now on. A second call does nothing."""
        # In one step: an interrupt that comes now leaves both to end with this frame.
        txn, view, self._txn, self._view = self._txn, self._view, None, None
        if txn is not None:
            _end(self._environment, self._generation, txn, view)

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise TypeError("a snapshot belongs to one process and one `with`: it cannot be copied or pickled")

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_txn", None) is not None:
            defer(partial(_end, self._environment, self._generation, self._txn, self._view))

    def raw(self, name: str) -> memoryview:
        """The stored bytes of a module's record with their checksum, without a copy.

        It is a view into the map, valid only while the snapshot is open. Used after that, it may show any bytes or
        crash the process. `name` is a full name. Raises UnknownModuleError.
        """
        name = plain_name(name)
        self._live()
        value = self._view.get(name.encode(), None, self._dbs.modules) if lookup.is_askable(name) else None
        if value is None:
            raise self._unknown(name)
        view: memoryview = value
        return view

    def describe(self, name: str) -> StoredModule:
        return self._in_transaction(lookup.load_stored, plain_name(name))

    def _select(self, name: str) -> Selection:
        return self._in_transaction(lookup.select, plain_name(name))

    def labels(self, name: str) -> dict[str, Label]:
        return self._in_transaction(lookup.load_labels, plain_name(name))

    @typed
    def labelled_modules(self, start: str = "") -> Iterator[str]:
        """The full names that begin with `start` of modules that have labels, in alphabetical order.

        The iterator reads on as it is used: use it while the snapshot is open.
        """
        names = (key_text(key.partition(b"\0")[0]) for key, _ in self._rows(self._dbs.labels, start))
        return (name for name, _ in groupby(names))

    def explain(self, name: str) -> dict[str, str]:
        """The source of each field of a module, by field; a new dict.

        A source is `core`, `discovered`, `defaults:<file>`, `manifest:<file>` or `client`; `unset` means that no
        source declares the field. Requirements and metadata have an entry for each key, as in `requirements.memory`.
        `name` is a full name, an alias or a short name. Raises UnknownModuleError, AmbiguousNameError.
        """
        stored = self.describe(name)
        return field_sources(stored, self._in_transaction(lookup.load_layers, stored.info.name).values())

    def overridden(self, name: str) -> tuple[str, ...]:
        stored = self.describe(name)
        source = stored.provenance.source
        if source != CLIENT:
            return ()
        return beneath(source, self._in_transaction(lookup.load_layers, stored.info.name).values())

    def implied_capabilities(self, name: str) -> tuple[str, ...]:
        declared = self.describe(name).info.capabilities
        if self._vocabulary is None:
            self._vocabulary = self._in_transaction(lookup.load_vocabulary)
        return tuple(sorted(set(self._vocabulary.expand(declared)).difference(declared)))

    def versions(self, name: str) -> Versions:
        """What `history` returns, not decoded yet: a damaged version is found when it is loaded.

        `name` and errors are as for `history`, CorruptRecordError aside.
        """
        return self._in_transaction(load_versions, plain_name(name))

    @typed
    def version_record(self, name: str, version: int) -> StoredModule | None:
        """A version of a full name, registered or not. None: it is not kept, or damaged."""
        return self._in_transaction(version_record, name, version)

    def history(self, name: str) -> tuple[StoredModule, ...]:
        return tuple(kept.load() for kept in self.versions(name).kept)

    def usages(self) -> list[ModuleUsage]:
        return self._in_transaction(load_all)

    def calls_lost(self) -> int:
        """How many calls, since the registry was created, the statistics could not hold for lack of room. 0: none."""
        return self._in_transaction(calls_lost)

    # Lists of words and names

    @typed
    def words(self, kind: str, start: str = "") -> Iterator[str]:
        """The words of a kind that modules have and that begin with `start`, in alphabetical order, each once.

        `kind` is `capability`, `category` or `pool`; of another kind there are no words. Implied capabilities are
        among them. The iterator reads on as it is used: use it while the snapshot is open.
        """
        return self._guarded(words_in_use(self._live(), self._dbs, kind, start))

    @typed
    def names_starting(self, start: str = "") -> Iterator[str]:
        """The full names of modules that begin with `start`, in alphabetical order.

        The iterator reads on as it is used: use it while the snapshot is open.
        """
        return (key_text(key) for key, _ in self._rows(self._dbs.modules, start))

    @typed
    def unregistered_names(self, start: str = "") -> Iterator[str]:
        """The full names that begin with `start` and that only the history still has, in alphabetical order.

        The iterator reads on as it is used: use it while the snapshot is open.
        """
        names = self._guarded(kept_names(self._live(), self._dbs, start))
        return (name for name in names if self._live().get(name.encode(), None, self._dbs.modules) is None)

    @typed
    def aliases(self, start: str = "") -> dict[str, Alias]:
        """The aliases that begin with `start`: the full name each means, and the source that declared it. A copy.

        Raises CorruptRecordError.
        """
        return {
            key_text(key): alias_codec.load(value, key, self._dbs.format)
            for key, value in self._rows(self._dbs.aliases, start)
        }

    def policies(self) -> dict[tuple[str, str], Policy]:
        """Every policy, by source and pattern. A source is `client`, or `manifest:` and the file. A copy.

        Raises CorruptRecordError.
        """
        return self._in_transaction(load_rows)

    @property
    def committed_at(self) -> int:
        """When this revision was committed, in milliseconds since the epoch."""
        return self._in_transaction(lookup.load_state).committed_at

    @typed
    def changes_since(self, revision: int) -> list[Change]:
        """The changes after a revision up to this one, oldest first; [] if there are none.

        A change with `everything` stands for those that the log no longer holds. For a `revision` above this one, which
        must be of another registry, there is just one such change.
        """
        if revision == self.revision:
            return []
        first = layout.revision_key(max(0, revision + 1))
        rows = items_from(self._live(), self._dbs.changes, first)
        logged: list[Change] = [change_codec.load(value, key, self._dbs.format) for key, value in self._guarded(rows)]
        if revision > self.revision or not logged:
            return [Change(self.revision, self.committed_at, everything=True)]
        if logged[0].revision > revision + 1:
            skipped = Change(logged[0].revision - 1, logged[0].committed_at, everything=True)
            return [skipped, *logged]
        return logged

    def __len__(self) -> int:
        return self._in_transaction(lookup.count_modules)

    def _live(self) -> Transaction:
        if self._txn is None:
            raise StoreClosedError("the snapshot is closed.", remedy="Query it inside its `with`.")
        if self._generation != self._environment.generation:
            raise ForkedSnapshotError("the snapshot belongs to the process this one was forked from.")
        return self._txn

    def _in_transaction(
        self, read: Callable[Concatenate[Transaction, Databases, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `read` returns, called with the snapshot's transaction."""
        try:
            return read(self._live(), self._dbs, *args, **kwargs)
        except lmdb.Error as error:
            raise translated(error, self._environment.folder) from error

    def _in_view(
        self, read: Callable[Concatenate[Transaction, Databases, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`_in_transaction`, but values are views into the map, as of `raw`: `read` must not return any."""
        try:
            self._live()
            return read(self._view, self._dbs, *args, **kwargs)
        except lmdb.Error as error:
            raise translated(error, self._environment.folder) from error

    def _fetch(self, name: str) -> ModuleInfo | None:
        txn = self._live()
        if type(name) is not str:
            name = plain_name(name)
        try:
            value = txn.get(name.encode(), None, self._dbs.modules)
        except (lmdb.BadValsizeError, UnicodeEncodeError):  # not a valid name
            return None
        except lmdb.Error as error:
            raise translated(error, self._environment.folder) from error
        if value is None:
            return lookup.find_info(txn, self._dbs, name)
        # `info_of`, but without a call for intact bytes.
        try:
            info = decode_info(value).info if crc32(value) == INTACT else lookup.info_of(value, name)
        except UNDECODABLE as error:
            raise corrupt(name, error) from error
        if info.name != name:
            raise misplaced(name, info.name)
        return info

    def _rows(self, database: Database, start: str) -> Iterator[tuple[bytes, bytes]]:
        """The rows whose key begins with `start`, in key order."""
        prefix = start.encode("utf-8", "surrogatepass")  # no stored key begins with a surrogate
        return self._guarded(items_with_prefix(self._live(), database, prefix))

    def _guarded(self, items: Iterator[T]) -> Iterator[T]:
        """Items read from the snapshot's transaction one by one. Raises StoreClosedError after `close`."""
        try:
            for item in items:
                yield item
                self._live()
        except lmdb.Error as error:
            raise translated(error, self._environment.folder) from error

    def _unknown(self, name: object) -> UnknownModuleError:
        return self._in_transaction(lookup.unknown, name)

    def _usage_of(self, name: str) -> ModuleUsage:
        return self._in_transaction(load_usage, name) or ModuleUsage(name)

    def _version_usage(self, name: str, version: int) -> VersionUsage:
        return self._in_transaction(load_version_usage, name, version)

    def _in_force(self, name: str) -> InForce:
        return self._in_transaction(load_in_force, plain_name(name))

    def _policy_of(self, name: str) -> ModulePolicy:
        if self._policies is None:
            self._policies = PolicyCache(declarations=self._in_transaction(load_declarations))
        name = plain_name(name)
        found = self._policies.by_name.get(name)
        return found or self._policies.decided(name, *self._in_transaction(load_name_and_pool, name))

    def _execute(self, plan: Plan) -> tuple[str, ...]:
        return self._in_transaction(execute, plan)


def _begin_both(environment: Environment) -> tuple[Transaction, Transaction, float]:
    """Two transactions on one commit, and its usage word.

    One copies values, which is quicker for small ones; the other gives views.
    """
    while True:
        words = environment.visibility.words()
        txn, view = environment.begin_long_read(), environment.begin_long_read(buffers=True)
        if txn.id() == view.id() and environment.visibility.is_still(words):
            return txn, view, words[1] if words else 0.0
        environment.end_long_read(environment.generation, txn, view)


def _end(environment: Environment, generation: int, txn: Transaction, view: Transaction) -> None:
    environment.end_long_read(generation, txn, view)
    detach(environment)
