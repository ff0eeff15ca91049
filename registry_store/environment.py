"""The only place that opens LMDB, and an environment that can be closed and opened again under its users.

Nothing of an environment may be alive across a fork: a transaction begun before it keeps the parent's slot in the
reader table, and closing the inherited environment in the child frees that slot under the parent's feet. So every
transaction runs inside `gate`, or is counted, and `sharing` closes the environment before a fork.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import lmdb

from dspy_registry.registry_store import access, layout
from dspy_registry.registry_store.errors import ForkedSnapshotError, StoreClosedError, StoreError, StorePermissionError
from dspy_registry.registry_store.handles import (
    Database,
    Databases,
    Transaction,
    file_identities,
    leak,
    open_databases,
    translated,
)

_SPARE_TRANSACTIONS: Final = 4
_READER_SLOT_BYTES: Final = 64
_SETTLE_TRIES: Final = 2000
_LOOK_AT_THREADS_EVERY: Final = 20
_DATA_MODE: Final = 0o644

short_reads: Final[set[CodeType]] = set()
"""The functions that read in flight, for whoever has to tell whether one of them is at work."""


def _is_reading() -> bool:
    """Whether any thread is inside one of the functions that read in flight."""
    for frame in sys._current_frames().values():
        caller: FrameType | None = frame
        while caller is not None:
            if caller.f_code in short_reads:
                return True
            caller = caller.f_back
    return False


def _begin_closed(*_: object, **__: object) -> Transaction:
    raise lmdb.Error("the environment is closed")


class Environment:
    """A shared LMDB environment. Get one from `sharing.attach`, give it back with `sharing.detach`.

    Hold `gate` from before a read transaction begins until after it ends, and `write_gate` around a write
    transaction. A read of a few instructions may instead be `in_flight`: append to the list, then begin; pop when it
    has ended. Closing the environment under it is an lmdb.Error for it, no more. `open_snapshots`
    counts read transactions that outlive the gate.
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self.folder = folder
        self.writable = writable
        self.gate = threading.RLock()
        self.in_flight: list[object] = []  # short reads outside the gate, one entry each
        self.write_gate = threading.RLock()
        self.users = 0
        self.generation = 0  # rises when a forked child must let go of what it inherited
        self.open_snapshots = 0
        self.lmdb: Any = None
        self.dbs: Databases
        self.modules: Database = None
        self.begin: Callable[..., Transaction]
        self.is_retired = False  # nobody uses it any more, or its files were replaced
        self._orphaned = False
        self._files: object = None
        self.open()

    def __repr__(self) -> str:
        state = "open" if self.lmdb is not None else "closed"
        return f"Environment({str(self.folder)!r}, {state}, writable={self.writable})"

    def open(self) -> None:
        """Open LMDB unless it is open. Call it inside the gate, before `begin`: fork closes it."""
        if self.lmdb is not None:
            return
        if self.is_retired:
            raise StoreClosedError(f"{self.folder} was closed or replaced.", remedy="Open it again.")
        if self._orphaned:
            raise ForkedSnapshotError(f"{self.folder} was forked while a snapshot was open.")
        env = _open_lmdb(self.folder, writable=self.writable)
        try:
            self.dbs = open_databases(env, writable=self.writable)
        except BaseException as error:
            env.close()
            if isinstance(error, lmdb.Error):
                raise translated(error, self.folder) from error
            raise
        files = file_identities(self.folder)
        if self._files not in (None, files):
            env.close()
            self.is_retired = True
            raise StoreClosedError(f"{self.folder} was replaced.", remedy="Open it again.")
        self._files = files
        self.lmdb = env
        self.begin = env.begin
        self.modules = self.dbs.modules

    def close(self) -> None:
        """Close LMDB; `open` opens it again. Only inside the gate, with no snapshot open."""
        self.begin = _begin_closed
        if self.lmdb is not None:
            self.lmdb.close()
            self.lmdb = None

    def settle(self) -> bool:
        """Let no short read begin, and wait for those in flight. They end within microseconds of being scheduled.

        False when one does not: it is the forking thread's own, interrupted by a signal whose handler forks. What a
        handler's exception left behind is no read any more.
        """
        self.begin = _begin_closed
        for tries in range(_SETTLE_TRIES):
            if self.in_flight and tries % _LOOK_AT_THREADS_EVERY == _LOOK_AT_THREADS_EVERY - 1 and not _is_reading():
                self.in_flight.clear()
            if not self.in_flight:
                return True
            time.sleep(0.0005)
        return False

    def resume(self) -> None:
        """Let short reads begin again, if the environment is open."""
        if self.lmdb is not None:
            self.begin = self.lmdb.begin

    def reopen_writable(self) -> None:
        """For a writer in a process that already reads the registry."""
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
        """A read transaction, inside the gate. When no slot is free, those of dead readers are freed first."""
        try:
            return self.begin(buffers=buffers)
        except lmdb.ReadersFullError:
            self.lmdb.reader_check()
            return self.begin(buffers=buffers)
        except lmdb.BadRslotError:  # lock.mdb was copied over by another: this process has no slots in it
            if self.writable or self.open_snapshots:
                raise
            self.close()
            self.open()
            return self.begin(buffers=buffers)

    def reap(self) -> None:
        """Free the reader slots of processes that died, so that the pages they saw are used again.

        Raises StoreError when data.mdb or lock.mdb is not the file that was opened. Readers that use another lock.mdb
        are not seen, and the pages they read would be overwritten.
        """
        if file_identities(self.folder) != self._files:
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

    def transaction_numbers(self) -> tuple[int, int]:
        """The number of the newest transaction, first as data.mdb has it, then as lock.mdb counts it."""
        newest: int = self.lmdb.info()["last_txnid"]
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

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A read transaction for the length of a `with`, inside the gate."""
        try:
            # A generator, not a class: one that a signal's handler interrupts is closed, and lets go of the gate.
            with self.gate:
                self.open()
                txn = self.begin_reading()
                try:
                    yield txn
                finally:
                    txn.abort()
        except lmdb.Error as error:
            raise translated(error, self.folder) from error

    def retire(self) -> None:
        """Close it for good, inside the gate: whoever still holds it gets an error."""
        self.close()
        self.is_retired = True

    def orphan(self) -> None:
        """In a forked child: never touch the inherited environment, which a snapshot of the parent uses."""
        self._orphaned = True
        self.generation += 1
        leak(self.lmdb)
        self.lmdb = None
        self.open_snapshots = 0


# Opening


def create(folder: Path, *, max_readers: int = layout.MAX_READERS, group: int | None = None) -> None:
    """Make the files of an empty environment, for a group too if one is named. The caller holds the writer's lease.

    `max_readers` is fixed for good by whoever creates lock.mdb.
    """
    if not (folder / layout.LOCK_FILE).exists():
        create_lock_file(folder, max_readers=max_readers, group=group)
    env = _open_lmdb(folder, writable=True, create=True)
    try:
        open_databases(env, writable=True)
    except lmdb.Error as error:
        raise translated(error, folder) from error
    finally:
        env.close()
    access.admit(folder / layout.DATA_FILE, group, access.DATA)


def create_lock_file(folder: Path, *, max_readers: int = layout.MAX_READERS, group: int | None = None) -> None:
    """Put a new lock.mdb in place, whole or not at all; processes that have another one open keep that.

    It is written out in full: LMDB leaves it sparse, and on a full disk a reader that touches a hole dies of SIGBUS.
    """
    temporary = folder / f".{layout.LOCK_FILE}.{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            os.fchmod(file.fileno(), access.mode_for_umask(access.LOCK))
            os.posix_fallocate(file.fileno(), 0, (max_readers + 4) * _READER_SLOT_BYTES)
        access.admit(temporary, group, access.LOCK)
        temporary.replace(folder / layout.LOCK_FILE)
    finally:
        temporary.unlink(missing_ok=True)


def lock_file_fits(folder: Path) -> bool:
    """Whether lock.mdb counts the transactions of this very data.mdb. For `sharing`: nobody here may have it open.

    LMDB believes lock.mdb as long as any process has it open. With the count of another data file it would begin with
    the wrong one of the two meta pages, and a writer would write over what the other one holds.
    """
    if not (folder / layout.DATA_FILE).stat().st_size:  # LMDB reads none that holds no transaction yet
        return False
    env = _open_lmdb(folder, writable=False)
    try:
        env.reader_check()
        with env.begin() as txn:
            fits: bool = txn.id() == env.info()["last_txnid"]
        return fits
    except lmdb.Error as error:
        raise translated(error, folder) from error
    finally:
        env.close()


def _open_lmdb(folder: Path, *, writable: bool, create: bool = False) -> Any:
    """Readers take the map size that is stored; where address space is limited, ever smaller ones are tried."""
    sizes = [layout.MAP_SIZE if writable else 0]
    while sizes[-1] != layout.SMALLEST_MAP_SIZE:
        sizes.append(max((sizes[-1] or layout.MAP_SIZE) >> 2, layout.SMALLEST_MAP_SIZE))
    for size in sizes:
        try:
            env = lmdb.open(
                os.fspath(folder),
                map_size=size,
                readonly=not writable,
                create=create,
                mode=_DATA_MODE if create else access.LOCK,  # less the umask: of lock.mdb, should that be missing
                max_readers=layout.MAX_READERS,
                max_dbs=len(layout.DATABASES) + 8,
                max_spare_txns=_SPARE_TRANSACTIONS,
                readahead=False,
                meminit=False,
            )
        except lmdb.Error as error:
            if error.code == errno.ENOMEM and size != sizes[-1]:
                continue
            raise translated(error, folder) from error
        break
    if "no reader locks" in env.readers():
        env.close()
        raise StorePermissionError(
            f"{folder} is on a read-only file system, where readers cannot hold a snapshot.",
            remedy="Mount it writable for readers too (they write only to lock.mdb).",
        )
    return env
