"""An LMDB environment that can be closed and opened again while others hold it. LMDB's handle stays in here.

Nothing of an environment may be alive across a fork. A transaction that was begun before it keeps the parent's slot in
the reader table, and closing the inherited environment in the child would free that slot while the parent uses it. So
every transaction runs inside `gate` or is counted, and `sharing` closes the environment before a fork.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from weakref import ref

import lmdb

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.errors import ForkedSnapshotError, RegistryError, StoreClosedError, StoreError
from dspy_registry.registry_store.fork_wait import let_fork_pass
from dspy_registry.registry_store.handles import Database, Databases, Transaction, translated
from dspy_registry.registry_store.opening import open_databases, open_lmdb
from dspy_registry.registry_store.paths import FileIdentity, file_identity
from dspy_registry.registry_store.reader_table import Slot, parse_table
from dspy_registry.registry_store.visibility import Visibility

_BEGIN_TRIES: Final = 1000
"""One commit costs a beginning read one try, so that many in a row are no commits."""
_FAILING_SECONDS: Final = 0.05  # a bound: the thread whose commit fails may be waiting for the gate


def _begin_closed(*_: object, **__: object) -> Transaction:
    raise lmdb.Error("the environment is closed")


class Environment:
    """A shared LMDB environment. Get one from `sharing.attach`, give it back with `sharing.detach`.

    A read transaction begins and ends inside `gate`, a write transaction inside `write_gate`. A read of a few
    instructions may instead be in flight: in one of the functions of `in_flight`. If the environment is closed
    meanwhile, such a read gets an lmdb.Error. `visibility` tells whether a transaction may be used.
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self.folder = folder
        self.writable = writable
        self.gate = threading.RLock()
        self.write_gate = threading.RLock()
        self.users = 0
        self.generation = 0  # rises when a forked child must let go of what it inherited
        self.visibility = Visibility(folder)
        self._held: list[tuple[ref[Transaction], int]] = []  # what outlives the gate, and the thread that began it
        self.lmdb: Any = None
        self.dbs: Databases
        self.modules: Database = None
        self.begin: Callable[..., Transaction]
        self.is_retired = False  # closed for good: it has no users, or its files were replaced
        self._orphaned = False
        self._files: tuple[FileIdentity | None, FileIdentity | None] = (None, None)
        self.open()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"Environment({str(self.folder)!r}, {state}, writable={self.writable})"

    @property
    def is_open(self) -> bool:
        """Whether LMDB is open now."""
        return self.lmdb is not None

    @property
    def is_lost(self) -> bool:
        """Whether its users must attach again: closed for good, or closed while its files were replaced."""
        return self.is_retired or (not self.is_open and self.was_replaced())

    def was_replaced(self) -> bool:
        """Whether data.mdb or lock.mdb is another file than the one that was opened. A missing one is no other."""
        now = _file_identities(self.folder)
        return any(file not in (None, known) for file, known in zip(now, self._files, strict=True))

    def open(self) -> None:
        """Open LMDB unless it is open. Call it inside the gate before `begin`, because a fork closes it."""
        if self.is_open:
            return
        if self.is_retired:
            raise StoreClosedError(f"{self.folder} was closed or replaced.", remedy="Open it again.")
        if self._orphaned:
            raise ForkedSnapshotError(f"{self.folder} was forked while a snapshot was open.")
        env = self._open_lmdb()
        files = _file_identities(self.folder)
        if self._files not in ((None, None), files):
            env.close()
            self.is_retired = True
            raise StoreClosedError(f"{self.folder} was replaced.", remedy="Open it again.")
        self._files = files
        self.lmdb = env
        self.begin = env.begin
        self.modules = self.dbs.modules

    def _open_lmdb(self) -> Any:
        """An open LMDB environment; `dbs` are its databases. Their names too count only if no commit went by."""
        while True:
            before = self.visibility.words()
            env = open_lmdb(self.folder, writable=self.writable)
            try:
                self.dbs = open_databases(env, self.folder, writable=self.writable)
                return env
            except BaseException as error:
                env.close()
                if isinstance(error, lmdb.Error | RegistryError) and not self.visibility.is_still(before):
                    continue
                if isinstance(error, lmdb.Error):
                    raise translated(error, self.folder) from error
                raise

    def close(self) -> None:
        """Close LMDB; `open` opens it again. Call it inside the gate, when no snapshot is open."""
        self.begin = _begin_closed
        if self.lmdb is not None:
            self.lmdb.close()
            self.lmdb = None

    def refuse_short_reads(self) -> None:
        """Let no short read begin. `in_flight` waits for those that have begun."""
        self.begin = _begin_closed

    def allow_short_reads(self) -> None:
        """Let short reads begin again, if the environment is open."""
        if self.is_open:
            self.begin = self.lmdb.begin

    def reopen_writable(self) -> None:
        """Open it again for writing: a writer starts in a process that already reads the registry."""
        with self.write_gate, self.gate:
            if self.writable:
                return
            if self.open_snapshots:
                raise StoreError(
                    f"{self.folder} has open snapshots in this process.",
                    remedy="Close them before opening a writer in the same process.",
                )
            self.close()
            self.writable = True
            try:
                self.open()
            except BaseException:
                self.writable = False
                raise

    def begin_reading(self, *, buffers: bool = False) -> Transaction:
        """A read transaction of a commit that was visible when it began. Call it inside the gate."""
        for _ in range(_BEGIN_TRIES):
            before = self.visibility.words()
            txn = self._begin(buffers)
            if self.visibility.held(before, txn, self.lmdb):
                return txn
            txn.abort()
        raise StoreError(
            f"the words in {self.folder / layout.REVISION_FILE} are never the same twice, so the file is damaged.",
            remedy="Start the writer again: it writes this file new.",
        )

    def _begin(self, buffers: bool) -> Transaction:
        """What LMDB begins. If no reader slot is free, those of dead readers are freed."""
        try:
            return self.begin(buffers=buffers)
        except lmdb.ReadersFullError:
            self.lmdb.reader_check()
        except lmdb.BadRslotError:  # another file was copied over lock.mdb: this process has no slots in it
            if self.writable or self.open_snapshots:
                raise
            self._open_again()
        except lmdb.PanicError:  # a commit failed in this process
            if not self._open_after_a_failure():
                raise
        return self.begin(buffers=buffers)

    def _open_again(self) -> None:
        self.close()
        self.open()

    def _open_after_a_failure(self) -> bool:
        """False: a snapshot or the failing commit itself still needs LMDB as it is."""
        if self.open_snapshots or not self.write_gate.acquire(timeout=_FAILING_SECONDS):
            return False
        try:
            self._open_again()
        finally:
            self.write_gate.release()
        return True

    def reader_slots(self) -> tuple[list[Slot], int]:
        """The slots of LMDB's table of readers, and the newest transaction. Takes no slot. Dead readers' are freed."""
        with self.gate:
            self.open()
            self.lmdb.reader_check()
            return parse_table(self.lmdb.readers()), self.lmdb.info()["last_txnid"]

    def reap(self) -> None:
        """Free the reader slots of processes that died, so that the pages they saw are used again.

        Raises StoreError when data.mdb or lock.mdb is not the file that was opened. Readers that use another lock.mdb
        are not seen, and the pages they read would be overwritten.
        """
        if _file_identities(self.folder) != self._files:
            raise StoreError(
                f"data.mdb or lock.mdb in {self.folder} was deleted or replaced while the registry is in use.",
                remedy="Stop every process that uses this registry, then start the writer again.",
            )
        with self.gate:
            self.open()
            self.lmdb.reader_check()

    # Writing

    def begin_writing(self, database: Database = None) -> Transaction:
        """A write transaction for a caller that holds `write_gate` and commits or aborts it.

        `database` is the one for calls that name none; None: LMDB's unnamed one. Raises StoreError.
        """
        with self.gate:
            self.open()
        try:
            return self.lmdb.begin(write=True, db=database)
        except lmdb.Error as error:
            raise translated(error, self.folder) from error

    @contextmanager
    def writing(self, database: Database = None) -> Iterator[Transaction]:
        """A write transaction for the length of a `with`, inside `write_gate`. See `begin_writing`.

        It is committed at the end, and aborted when anything is raised. Raises StoreError.
        """
        with self.write_gate:
            txn = self.begin_writing(database)
            try:
                yield txn
                txn.commit()
            except lmdb.Error as error:
                txn.abort()
                raise translated(error, self.folder) from error
            except BaseException:
                txn.abort()
                raise

    def newest_transaction(self) -> int:
        """The number of the newest transaction, as data.mdb has it."""
        with self.gate:
            self.open()
            newest: int = self.lmdb.info()["last_txnid"]
        return newest

    def transaction_numbers(self) -> tuple[int, int]:
        """The number of the newest transaction, first as data.mdb has it, then as lock.mdb counts it."""
        newest = self.newest_transaction()
        with self.writing() as txn:
            return newest, txn.id() - 1

    def copy_to(self, descriptor: int, txn: Transaction) -> None:
        """Write LMDB's own copy of what a read transaction sees to an open file, without the free pages.

        Raises lmdb.Error with an error number of the system when the file cannot be written, else StoreError.
        """
        try:
            self.lmdb.copyfd(descriptor, compact=True, txn=txn)
        except lmdb.Error as error:
            if error.code in errno.errorcode:  # LMDB's own codes, of reading, are negative
                raise
            raise translated(error, self.folder) from error

    # Reading

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A read transaction for the length of a `with`, inside the gate. LMDB's errors are raised as ours."""
        try:
            # A generator, not a class: if a signal's handler interrupts it, it is closed and releases the gate.
            with self.gate:
                self.open()
                txn = self.begin_reading()
                try:
                    yield txn
                finally:
                    txn.abort()
        except lmdb.Error as error:
            raise translated(error, self.folder) from error

    @contextmanager
    def long_read(self) -> Iterator[Transaction]:
        """A read transaction for a `with` that takes long: it outlives the gate, so other reads go on.

        Call it outside the gate. LMDB stays open, and disk space that its revision uses is not used again, until it
        ends.
        """
        let_fork_pass(self.holders)
        with self.gate:
            self.open()
            generation = self.generation
            try:
                txn = self.begin_long_read()
            except lmdb.Error as error:
                raise translated(error, self.folder) from error
        try:
            yield txn
        finally:
            self.end_long_read(generation, txn)

    def begin_long_read(self, *, buffers: bool = False) -> Transaction:
        """A read transaction that outlives the gate; call it inside the gate.

        It counts as long as its object lives. So one that an interrupt kept from its owner counts no longer.
        """
        txn = self.begin_reading(buffers=buffers)
        if self._held:
            self._held = self._alive()  # what interrupts left behind is forgotten
        self._held.append((ref(txn), threading.get_ident()))
        return txn

    def end_long_read(self, generation: int, *transactions: Transaction) -> None:
        """End transactions of `begin_long_read`; `generation` is that of when they began."""
        with self.gate:
            if generation == self.generation:
                self._held = [held for held in self._held if held[0]() not in (None, *transactions)]
                for txn in transactions:
                    txn.abort()
            else:  # inherited through a fork: the slots are the parent's
                _leak(*transactions)

    @property
    def open_snapshots(self) -> int:
        """How many read transactions outlive the gate now."""
        return len(self._alive())

    def _alive(self) -> list[tuple[ref[Transaction], int]]:
        return [held for held in self._held if held[0]() is not None]

    def holders(self) -> set[int]:
        """The threads that began the open snapshots."""
        return {thread for _, thread in self._alive()}

    def retire(self) -> None:
        """Close it for good, inside the gate. Its users get StoreClosedError from now on."""
        self.close()
        self.is_retired = True
        self.visibility.let_go()

    def orphan(self) -> None:
        """In a forked child: give up the inherited environment untouched, because a snapshot of the parent uses it."""
        self._orphaned = True
        self.generation += 1
        _leak(self.lmdb, *[txn() for txn, _ in self._alive()])
        self.lmdb = None
        self._held = []


def _file_identities(folder: Path) -> tuple[FileIdentity | None, FileIdentity | None]:
    """Which files data.mdb and lock.mdb are now."""
    return file_identity(f"{folder}/{layout.DATA_FILE}"), file_identity(f"{folder}/{layout.LOCK_FILE}")


def _leak(*inherited: Any) -> None:
    """Keep LMDB objects of a parent process alive for good: to free one would free the parent's reader slot."""
    import ctypes

    for kept in inherited:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
