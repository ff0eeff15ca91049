"""The revision word: one aligned 64-bit number in a small file that every process maps.

    even, 2 x revision        the newest commit is this revision
    odd, 2 x revision + 1     the commit of this revision is under way
    NaN                       this file was retired: the registry was restored or replaced

The number is an integer below 2**53, stored as an IEEE-754 double. CPython reads and compares a double without
allocating an integer, which would take a sixth of a cached look-up. NaN is unequal to every number, so every
comparison with it fails. On the supported 64-bit processors an aligned 8-byte copy is one load or store, never torn.

The usage word beside it counts the commits that make no revision. So each commit moves one of the two.

The health count moves with each list that the file `health` puts in force: it is odd while that happens. So whoever
keeps what rests on that list has to look at this file only.

The bell (`bell.py`) is one more number, for those who sleep until something changes: the writer raises it after a
commit, and wakes them. 0 means that the writer is of release 0.1.0, which rings no bell.

Beside the word lies the announcement: the Change of the commit under way, written before the odd word is stored.
The word never takes an earlier value again, and no two commits use the same odd word. So a reader that sees the same
word before and after it reads the announcement has read the announcement of that word.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dspy_registry.registry_store.changes import Change, announcement_codec
from dspy_registry.registry_store.codec import seal
from dspy_registry.registry_store.data_file import refuse_loss
from dspy_registry.registry_store.disk import explanation, sync
from dspy_registry.registry_store.errors import (
    CorruptRecordError,
    DamagedStoreError,
    RegistryError,
    RegistryNotFoundError,
    StoreError,
    StorePermissionError,
)
from dspy_registry.registry_store.layout import DATA_FILE, LOCK_FILE, REVISION_FILE
from dspy_registry.registry_store.own_files import new_file, open_file
from dspy_registry.registry_store.paths import FileIdentity, file_identity

if TYPE_CHECKING:
    from dspy_registry.registry_store.bell import Bell

FILE_BYTES: Final = 64 * 1024
ID_BYTES: Final = 16

_MAGIC: Final = b"dspy-registry-1\n"
# The word has a cache line to itself: a write to the same line would slow its readers. Word, nothing, usage word and
# health count are equally far apart, so that one view shows them all. Nothing is 0 and stays so.
_WORD_AT, _USAGE_AT, _HEALTH_AT, _MAGIC_AT, _BELL_AT, _ANNOUNCEMENT_AT = 0, 64, 96, 128, 192, 4096
_ASLEEP_UNTIL_AT: Final = _BELL_AT + 8
_ID_AT: Final = _MAGIC_AT + len(_MAGIC)
_DATA_AT: Final = _ID_AT + 16
_DOUBLE: Final = struct.Struct("d")
_DATA: Final = struct.Struct("=QQ")  # device and inode of data.mdb
_HEADER: Final = struct.Struct("=QQ")  # announced revision (0: none), length
_PAYLOAD_AT: Final = _ANNOUNCEMENT_AT + _HEADER.size
LARGEST_ANNOUNCEMENT: Final = FILE_BYTES - _PAYLOAD_AT

RETIRED: Final = float("nan")


# `shared == private` compares two views of doubles without making a Python float, so it is the quickest look at a
# shared number. NaN is unequal to itself here too. A view of one number never equals a view of two.


def private_word(word: float) -> memoryview[float]:
    """A number of this process, to compare with `word`, `usage_word` or the health word. `[()]` reads and sets it."""
    return memoryview(bytearray(_DOUBLE.pack(word))).cast("d", shape=[])


def private_words(*words: float) -> memoryview[float]:
    """Numbers of this process, to compare with `words` or `every_word`. `[0]`, `[1]` and so on read and set them."""
    return memoryview(bytearray(b"".join(map(_DOUBLE.pack, words)))).cast("d")


NO_DATA_FILE: Final = (0, 0)
"""Stands for no data file. A revision file that names it makes the next writer give the registry a new identity."""


def committed(revision: int) -> float:
    """The even word of a revision."""
    return 2.0 * revision


def under_way(revision: int) -> float:
    """The odd word of a revision."""
    return 2.0 * revision + 1.0


def is_retired(word: float) -> bool:
    """Whether this is the word of a retired file: only NaN is unequal to itself."""
    return word != word


def acknowledged(word: float) -> int:
    """The newest revision that a sound word says was committed: the word is evidence of it, and outlives the pages."""
    revision, is_under_way = divmod(int(word), 2)
    return revision - is_under_way


def is_sound(word: float) -> bool:
    """Whether a writer can have stored this word: a whole number from 0 to below 2**53. NaN is not sound."""
    return 0 <= word < 2.0**53 and word % 1 == 0


def missing_commits(folder: Path, word: float, revision: int) -> str | None:
    """What to say where data.mdb holds only `revision`, and the word says that more was committed; else None.

    The word is from before the transaction in which the revision was read.
    """
    if not is_sound(word) or acknowledged(word) <= revision:
        return None
    return (
        f"{folder}: revision {acknowledged(word)} was committed, but the newest that data.mdb holds is {revision}. "
        "Acknowledged changes are missing: restore a backup, or make them again."
    )


class RevisionFile:
    """A mapping of the revision file. Readers map it read-only.

    `word`, `usage_word` and `health_count` are views of the shared numbers: `word[()]` is the word now. `words` is a
    view of word and usage word, `every_word` of word, nothing, usage word and health count.
    `registry_id` is the identity of the registry. `identity` is (device, inode) of this file, `data_identity` that of
    data.mdb: a copied or compacted data.mdb may hold the same registry and revision, but live readers have not mapped
    it.
    """

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        self.path = folder / REVISION_FILE
        try:
            self._open(writable)
        except RegistryError:
            raise
        except FileNotFoundError as error:
            raise RegistryNotFoundError(f"there is no registry in {folder}.") from error
        except PermissionError as error:
            raise StorePermissionError(
                f"{self.path} cannot be opened: {error.strerror}.",
                remedy="Readers must be able to read it, the writer to write it: run them as one user or group.",
            ) from error
        except OSError as error:
            raise explanation(error, folder) from error
        if self._map[_MAGIC_AT:_ID_AT] != _MAGIC:
            raise self._unknown()
        self.registry_id = self._map[_ID_AT : _ID_AT + ID_BYTES]
        self.data_identity: FileIdentity = _DATA.unpack_from(self._map, _DATA_AT)
        view = memoryview(self._map)
        self.word = view[_WORD_AT : _WORD_AT + 8].cast("d", shape=[])
        self.usage_word = view[_USAGE_AT : _USAGE_AT + 8].cast("d", shape=[])
        self.health_count = view[_HEALTH_AT : _HEALTH_AT + 8].cast("d", shape=[])
        self.words = view[_WORD_AT : _USAGE_AT + 8].cast("d")[:: (_USAGE_AT - _WORD_AT) // 8]
        self.every_word = view[_WORD_AT : _HEALTH_AT + 8].cast("d")[:: (_HEALTH_AT - _USAGE_AT) // 8]

    def _open(self, writable: bool) -> None:
        descriptor = open_file(self.path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            if status.st_size != FILE_BYTES:
                raise self._unknown()
            self._map = mmap.mmap(descriptor, FILE_BYTES, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        self.identity = (status.st_dev, status.st_ino)
        self._mapped_for_writing: RevisionFile | None = None

    @cached_property
    def bell(self) -> Bell:
        """The number that changes after each commit, to sleep on. ctypes is loaded only by those who need it."""
        from dspy_registry.registry_store.bell import Bell

        return Bell(self._map, _BELL_AT)

    @property
    def _writable(self) -> RevisionFile | None:
        """This file, mapped for writing. None: this process may not, or not now, or another file is in its place."""
        if self._mapped_for_writing is None:
            with suppress(StoreError):
                file = RevisionFile(self.path.parent, writable=True)
                self._mapped_for_writing = file if file.identity == self.identity else None
        return self._mapped_for_writing

    @property
    def wakes_sleepers(self) -> bool:
        """Whether the writer wakes who sleeps here. False: it rings no bell, or this process cannot announce it."""
        return self.bell.value != 0 and (self.bell.is_always_rung or self._writable is not None)

    def sleep(self, seen: int, seconds: float) -> None:
        """Sleep until the bell is no longer `seen`, or for these seconds. As `bell.wait`, it may return earlier."""
        if not self.bell.is_always_rung and self._writable is not None:
            self._writable.bell.announce()
        self.bell.wait(seen, seconds)

    def __repr__(self) -> str:
        return f"RevisionFile({str(self.path)!r}, word={self.word[()]})"

    def _unknown(self) -> DamagedStoreError:
        return DamagedStoreError(
            f"{self.path} is not a revision file of this release.", remedy="Start the writer: it makes a new one."
        )

    def announcement(self, revision: int) -> Change | None:
        """What the commit of this revision changes; None: it is not announced yet, or no longer.

        The caller must see the same word before and after the call, or ignore what it returns.
        """
        announced, length = _HEADER.unpack_from(self._map, _ANNOUNCEMENT_AT)
        if announced != revision or length > LARGEST_ANNOUNCEMENT:
            return None
        try:
            change: Change = announcement_codec.load(self._map[_PAYLOAD_AT : _PAYLOAD_AT + length])
        except CorruptRecordError:  # being replaced under our eyes: the word has moved on
            return None
        return change

    def is_current(self) -> bool:
        """Whether the folder still holds the file that is mapped here."""
        return file_identity(self.path) == self.identity

    # The writer's side

    def announce(self, change: Change, encoded: bytes | None = None) -> None:
        """Lay down what the coming commit changes, then store its odd word. `encoded` is `encode(change)`, if known."""
        payload = announcement_codec.dump(change) if encoded is None else seal(encoded)
        if len(payload) > LARGEST_ANNOUNCEMENT:
            payload = announcement_codec.dump(Change(change.revision, change.committed_at, everything=True))
        # No reader takes a half-written announcement: its revision stands there only when it is whole.
        _HEADER.pack_into(self._map, _ANNOUNCEMENT_AT, 0, 0)
        self._map[_PAYLOAD_AT : _PAYLOAD_AT + len(payload)] = payload
        _HEADER.pack_into(self._map, _ANNOUNCEMENT_AT, change.revision, len(payload))
        self.word[()] = under_way(change.revision)

    def count_silent_commit(self) -> None:
        """Raise the usage word: a commit made no revision. No other commit may begin before this was called."""
        self.usage_word[()] += 1.0

    @contextmanager
    def changing_health(self) -> Iterator[None]:
        """The health count is odd meanwhile, and even after it. An exception or a death leaves it odd.

        While it is odd, readers keep nothing that rests on health: another list may be in force at any moment.
        """
        count = self.health_count[()] // 2 * 2
        self.health_count[()] = count + 1.0
        yield
        self.health_count[()] = count + 2.0

    def conclude(self, revision: int) -> None:
        """Store the even word of a revision that has been committed."""
        if not is_retired(self.word[()]):  # else a second writer has begun, which `Ownership.confirm` is to see
            self.word[()] = committed(revision)

    def retire(self) -> None:
        """Tell every process that maps this file to open the registry again, and wake those who sleep."""
        self.word[()] = RETIRED
        self.ring()

    def ring(self) -> None:
        """Wake all who sleep until something changes. Each of them takes some microseconds."""
        self.bell.advance()
        self.bell.wake_all()

    def raise_bell(self) -> bool:
        """As `ring`, but wake nobody. Returns whether anybody sleeps: `bell.wake_aside` wakes them.

        Mostly nobody has announced that he sleeps, and the system need not be asked.
        A process that goes to sleep after this knows the new number, and then looks at the word. So the bell need not
        be raised again. Another thread must not raise it: one of two raises could be lost.
        """
        bell = self.bell
        bell.advance()
        return bell.is_awaited() and bell.set_aside()


def create_revision_file(
    folder: Path, registry_id: bytes, revision: int, mode: int, *, data: tuple[int, int] | None = None
) -> None:
    """Put a new revision file in place, whole or not at all. A former one is retired.

    `data` is the identity of the data file that it belongs to; None: the one in the folder.
    All blocks are allocated now. Without that, a store through the map causes SIGBUS on a full disk.
    Raises OSError, RegistryNotFoundError, StorePermissionError.
    """
    content = bytearray(FILE_BYTES)
    struct.pack_into("=d", content, _WORD_AT, committed(revision))
    struct.pack_into("=I", content, _BELL_AT, 1)
    struct.pack_into("=d", content, _ASLEEP_UNTIL_AT, 0.0 if _is_for_one_user(folder) else math.inf)
    content[_MAGIC_AT:_ID_AT] = _MAGIC
    content[_ID_AT : _ID_AT + ID_BYTES] = registry_id
    _DATA.pack_into(content, _DATA_AT, *(data_identity(folder) if data is None else data))
    temporary = folder / f".{REVISION_FILE}.{os.getpid()}"
    try:
        with new_file(temporary) as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        retire_revision_file(folder)
        temporary.replace(folder / REVISION_FILE)
        sync(folder)  # the file says that the registry was completed: it must not be lost where data.mdb is not
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _is_for_one_user(folder: Path) -> bool:
    """Whether only this user can read the registry: a reader has to write to lock.mdb."""
    try:
        status = os.stat(f"{folder}/{LOCK_FILE}")  # noqa: PTH116 - as in `data_identity`
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & 0o077


def data_identity(folder: Path) -> FileIdentity:
    """(device, inode) of the registry's data file.

    Raises RegistryNotFoundError, StorePermissionError, and DamagedStoreError where the data file was taken away.
    """
    try:
        status = os.stat(f"{folder}/{DATA_FILE}")  # noqa: PTH116 - half the time of Path.stat, at every opening
    except (FileNotFoundError, NotADirectoryError) as error:
        if _knows_a_data_file(folder):
            refuse_loss(folder)
        raise RegistryNotFoundError(f"there is no registry in {folder}.") from error
    except OSError as error:
        raise StorePermissionError(
            f"{folder} cannot be read: {error.strerror}.",
            remedy="Run readers as the writer's user or group, or let them read the folder.",
        ) from error
    return status.st_dev, status.st_ino


def _knows_a_data_file(folder: Path) -> bool:
    """Whether a revision file is here that names one. That of a backup, which may have been killed, names none."""
    try:
        return RevisionFile(folder).data_identity != NO_DATA_FILE
    except StoreError:
        return False


def newest_word(folder: Path) -> float:
    """The word in a folder now; RETIRED where there is no sound revision file."""
    try:
        return RevisionFile(folder).word[()]
    except StoreError:
        return RETIRED


def retire_revision_file(folder: Path) -> None:
    """Retire the revision file in a folder; does nothing if there is no usable one. Raises StorePermissionError."""
    try:
        RevisionFile(folder, writable=True).retire()
    except (RegistryNotFoundError, DamagedStoreError):  # none there, or not a sound one: nobody reads by it
        return
