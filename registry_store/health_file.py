"""The file `health`: the module versions that are not healthy on this host. Only the daemon writes it; all map it.

    0      word, an IEEE-754 double, alone in its cache line: the number of the list in force; NaN: retired
    64     futex word, 4 bytes, changed with every list
    128    "dspy-health-1\\n"
    4096   two places for a list: length (8), list | crc

A list is written into the place that the list in force does not use, then its number becomes the word. A reader that
sees the same word before and after it copies a list has a whole list. A daemon that is killed while it writes changes
nothing. Nothing is synced. A list of another boot is ignored, because its times mean nothing now.

The file `revision` counts what is put in force, and says so before it is: see `RevisionFile.changing_health`.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from dspy_registry.registry_store import access
from dspy_registry.registry_store.boot_clock import boot_id, boot_seconds, unix_time
from dspy_registry.registry_store.circuit import CLOSED, CircuitRow, State
from dspy_registry.registry_store.codec import SealedAlone
from dspy_registry.registry_store.disk import explained
from dspy_registry.registry_store.errors import (
    CorruptRecordError,
    DamagedStoreError,
    RegistryError,
    RegistryNotFoundError,
    StoreError,
    StorePermissionError,
)
from dspy_registry.registry_store.own_files import new_file, not_regular, open_binary
from dspy_registry.registry_store.paths import file_identity
from dspy_registry.registry_store.revision import RETIRED, RevisionFile, is_retired

if TYPE_CHECKING:
    from dspy_registry.registry_store.futex import FutexWord

HEALTH_FILE: Final = "health"

_MAGIC: Final = b"dspy-health-1\n"
_WORD_AT, _FUTEX_AT, _MAGIC_AT, _LISTS_AT = 0, 64, 128, 4096
_PLACE_BYTES: Final = 1024 * 1024
_LENGTH: Final = struct.Struct("=Q")
FILE_BYTES: Final = _LISTS_AT + 2 * _PLACE_BYTES
LARGEST_LIST: Final = _PLACE_BYTES - _LENGTH.size
_TRIES: Final = 8


class HealthEntry(msgspec.Struct, frozen=True):
    """A module version that is not healthy.

    `state` is "open" or "half_open". `until` is the Unix time at which the circuit becomes or became half-open.
    `failures` is how many calls of the window failed when it opened; 0: an operator opened it. `openings` counts
    since the daemon last forgot this version.
    """

    name: str
    version: int
    state: State
    until: float
    failures: int
    last_kind: str
    openings: int


class HealthList(msgspec.Struct, frozen=True, array_like=True):
    """What is published. Rows whose circuit is closed are kept for the next daemon; readers skip them."""

    boot: str
    rows: tuple[CircuitRow, ...] = ()
    omitted: int = 0  # how many rows there was no room for


_codec: Final = SealedAlone(HealthList, "the list of what is not healthy")


class HealthFile:
    """A mapping of the file. Readers map it read-only. `word[()]` is the word now.

    Raises RegistryNotFoundError, StorePermissionError, StoreError for what is no such file, and OSError where the
    system refuses to open or map it.
    """

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        self.path = folder / HEALTH_FILE
        try:
            with open_binary(self.path, writable=writable) as file:
                status = os.fstat(file.fileno())
                if status.st_size != FILE_BYTES:
                    raise _unknown(self.path)
                access_mode = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
                self._map = mmap.mmap(file.fileno(), FILE_BYTES, access=access_mode)
        except FileNotFoundError as error:
            raise RegistryNotFoundError(f"there is no file {self.path}.") from error
        except PermissionError as error:
            raise StorePermissionError(
                f"{self.path} cannot be opened: {error.strerror}.",
                remedy="Readers must be able to read it, the daemon to write it: run them as one user or group.",
            ) from error
        except IsADirectoryError as error:
            raise not_regular(self.path) from error
        if self._map[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
            raise _unknown(self.path)
        self.identity = (status.st_dev, status.st_ino)
        self._revision: RevisionFile | None = None
        if writable:
            with suppress(StoreError):  # an error from here would say that the file `health` is not usable
                self.find_revision()
        self.word = memoryview(self._map)[_WORD_AT : _WORD_AT + 8].cast("d", shape=[])

    @cached_property
    def futex(self) -> FutexWord:
        """The number that changes with every list, to sleep on. ctypes is loaded only by those who need it."""
        from dspy_registry.registry_store.futex import FutexWord

        return FutexWord(self._map, _FUTEX_AT)

    def __repr__(self) -> str:
        return f"HealthFile({str(self.path)!r}, word={self.word[()]})"

    def read(self) -> tuple[float, tuple[CircuitRow, ...]]:
        """A word and its rows, closed ones included. There are no rows if they are of another boot, or it is retired.

        Raises CorruptRecordError.
        """
        for _ in range(_TRIES):
            word = self.word[()]
            if is_retired(word):
                return word, ()
            value = self._value(word)
            if self.word[()] == word:
                return word, _rows_of_this_boot(value)
        return word, ()  # it was replaced at each try: the next call finds another word

    def is_current(self) -> bool:
        """Whether the folder still holds the file that is mapped here."""
        return file_identity(self.path) == self.identity

    def publish(self, rows: Iterable[CircuitRow]) -> float:
        """Put a list in force and return its word. Only the daemon may. Wakes nobody: call `futex.wake_all()` for that.

        If there is no room for all rows, those with the nearest deadline are left out.
        """
        value = _encoded(tuple(rows))
        word = self.word[()] + 1
        place = _place(word)
        # Readers do not use this place before the word names it: it held the list before the one in force.
        _LENGTH.pack_into(self._map, place, len(value))
        self._map[place + _LENGTH.size : place + _LENGTH.size + len(value)] = value
        self._put_in_force(word)
        return word

    def retire(self) -> None:
        """Tell every process that maps this file to open it again."""
        self._put_in_force(RETIRED)
        self.futex.wake_all()

    def _put_in_force(self, word: float) -> None:
        with self._counted():
            self.word[()] = word
        self.futex.store(self.futex.value + 1)

    def _counted(self) -> AbstractContextManager[None]:
        """The file `revision` of the folder counts what is done meanwhile. Without one, nobody keeps an answer."""
        self.find_revision()
        return nullcontext() if self._revision is None else self._revision.changing_health()

    def find_revision(self) -> None:
        """Look for the file `revision`: each writer that opens makes another one. Raises StoreError.

        While there is no sound one, readers go by the one before. If another cannot be opened, a list is not held back
        for that: what readers keep ends with the minute.
        """
        if self._revision is None or not self._revision.is_current():
            try:
                self._revision = RevisionFile(self.path.parent, writable=True)
            except (RegistryNotFoundError, DamagedStoreError):
                pass
            except StoreError:
                if self._revision is None:
                    raise

    def _value(self, word: float) -> bytes:
        place = _place(word)
        length = min(_LENGTH.unpack_from(self._map, place)[0], LARGEST_LIST)
        return self._map[place + _LENGTH.size : place + _LENGTH.size + length]


def entries(rows: Iterable[CircuitRow]) -> list[HealthEntry]:
    """The rows as users see them now: only those that are not healthy, by name and version."""
    now = boot_seconds()
    return [
        HealthEntry(
            row.name, row.version, row.state(now), unix_time(row.until), row.failures, row.last_kind, row.openings
        )
        for row in sorted(rows, key=lambda row: (row.name, row.version))
        if row.state(now) != CLOSED
    ]


def ensure_health_file(folder: Path, group: int | None = None) -> HealthFile:
    """The file, opened writable. A missing or unusable one is replaced. Only for the daemon with the writer lock.

    Raises StorePermissionError, StoreError: then nothing was replaced that readers may use.
    """
    with explained(folder):
        file = _usable(folder)
        if file is None:
            _create(folder, group)
            file = HealthFile(folder, writable=True)
        file.find_revision()  # now: a daemon that cannot open it says so when it starts
        return file


def _usable(folder: Path) -> HealthFile | None:
    """The file in the folder. None: it is missing, damaged or retired. Raises StorePermissionError, OSError."""
    file = _found(folder)
    try:
        if file is None or is_retired(file.read()[0]):
            return None
    except CorruptRecordError:
        return None
    return file


def _found(folder: Path) -> HealthFile | None:
    """None: it is missing, or of another release, so no reader uses it. Raises StorePermissionError, OSError."""
    try:
        return HealthFile(folder, writable=True)
    except StorePermissionError:
        raise
    except StoreError:
        return None


def health_file_problems(folder: Path) -> list[str]:
    """What is wrong with the file; empty: nothing, or the file is missing."""
    try:
        if (folder / HEALTH_FILE).exists():
            HealthFile(folder).read()
    except StorePermissionError:  # it is not for this user to look at
        return []
    except RegistryError as error:
        return [error.message]
    return []


def _create(folder: Path, group: int | None) -> None:
    content = bytearray(FILE_BYTES)
    content[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] = _MAGIC
    value = _encoded(())
    _LENGTH.pack_into(content, _LISTS_AT, len(value))
    content[_LISTS_AT + _LENGTH.size : _LISTS_AT + _LENGTH.size + len(value)] = value
    temporary = folder / f".{HEALTH_FILE}.{os.getpid()}"
    try:
        with new_file(temporary) as file:
            os.fchmod(file.fileno(), access.mode_for_umask(access.DATA))
            file.write(content)  # all of it: a store into a hole causes SIGBUS on a full disk
        access.admit(temporary, group, access.DATA)
        if (former := _found(folder)) is not None:
            former.retire()
        temporary.replace(folder / HEALTH_FILE)
    finally:
        temporary.unlink(missing_ok=True)


def _encoded(rows: tuple[CircuitRow, ...]) -> bytes:
    value = _codec.dump(HealthList(boot_id(), rows))
    kept = rows
    while len(value) > LARGEST_LIST:
        kept = tuple(sorted(kept, key=lambda row: row.until))[-max(len(kept) // 2, 1) :]
        value = _codec.dump(HealthList(boot_id(), kept, len(rows) - len(kept)))
    return value


def _rows_of_this_boot(value: bytes) -> tuple[CircuitRow, ...]:
    found: HealthList = _codec.load(value)
    return found.rows if found.boot == boot_id() else ()


def _place(word: float) -> int:
    return _LISTS_AT + int(word) % 2 * _PLACE_BYTES


def _unknown(path: Path) -> StoreError:
    return StoreError(f"{path} is not a health file of this release.", remedy="Restart the daemon: it makes a new one.")
