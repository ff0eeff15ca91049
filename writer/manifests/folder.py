"""Reading a folder of manifests as a whole, repeatedly. Unchanged files are not parsed again."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
from errno import EAGAIN, EINVAL
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from dspy_registry.writer.manifests.declarations import LoadedFile, unreadable
from dspy_registry.writer.manifests.folder_scan import FoundFile, Places, Signature, scan, signature_of
from dspy_registry.writer.manifests.parse import MAX_FILE_BYTES
from dspy_registry.writer.manifests.parser import Parser
from dspy_registry.writer.manifests.tree import Tree

_RACY_NS: Final = 100_000_000
"""A file read so soon after a change may change again with the same signature: it is read once more later."""

_BUSY: Final = "is being written: another process has it open for writing"


class Reading(msgspec.Struct, frozen=True):
    """The folder at one time.

    `is_new`: it differs from the last reading. `is_busy`: it is being changed, so it must be read again.
    """

    tree: Tree
    places: Places
    is_new: bool
    is_busy: bool


class _Known(msgspec.Struct, frozen=True):
    found: FoundFile
    loaded: LoadedFile
    is_racy: bool = False
    content: bytes = b""  # its digest


class _BusyError(Exception):
    """The file is being written right now."""


class ManifestFolder:
    """A folder of manifests. `read` it from one thread at a time, and `close` it, from any thread."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._parser = Parser()
        self._known: dict[str, _Known] = {}
        self._last: Tree | None = None

    def __repr__(self) -> str:
        return f"ManifestFolder({str(self.root)!r})"

    def close(self) -> None:
        """End the process that parses. A `read` that is under way raises ParserClosedError."""
        self._parser.close()

    def read(self) -> Reading:
        """Scan the folder and read the files that have changed.

        A second scan with the same result proves that all of it existed at one time.
        """
        found = scan(self.root)
        known, files, is_busy = {}, {}, False
        for file, one in found.files.items():
            try:
                known[file] = self._file(file, one)
                files[file] = known[file].loaded
            except FileNotFoundError:
                continue  # gone since
            except _BusyError:
                is_busy = True
                files[file] = unreadable(file, _BUSY)
        self._known = known
        tree = Tree(files, found.unknown, found.errors)
        is_new = self._last is None or not _is_same(self._last, tree)
        self._last = tree
        is_busy = is_busy or (is_new and scan(self.root).files != found.files)
        return Reading(tree, found.places, is_new, is_busy)

    def _file(self, file: str, found: FoundFile) -> _Known:
        known = self._known.get(file)
        if known is not None and known.found == found and not known.is_racy:
            return known
        if found.problem:
            return _Known(found, unreadable(file, found.problem))
        try:
            content, signature = read_content(found.path)
        except (FileNotFoundError, _BusyError):
            raise
        except OSError as error:
            return _Known(found, unreadable(file, f"cannot be read: {error.strerror}"), True)
        is_racy = abs(time.time_ns() - signature[-2]) < _RACY_NS
        found, digest = msgspec.structs.replace(found, signature=signature), blake2b(content).digest()
        if known is not None and known.content == digest:
            return _Known(found, known.loaded, is_racy, digest)
        try:  # the ending of the name in this folder counts, not of what it leads to
            return _Known(found, self._parser.load(file, content, Path(file).suffix), is_racy, digest)
        except OSError as error:
            return _Known(found, unreadable(file, f"cannot be read: no process starts: {error.strerror}"), True)


def _is_same(old: Tree, new: Tree) -> bool:
    if old.files.keys() != new.files.keys() or (old.unknown, old.errors) != (new.unknown, new.errors):
        return False
    return all(
        was is now or (was.declared is None and now.declared is None and was.errors == now.errors)
        for was, now in zip(old.files.values(), new.files.values(), strict=True)
    )


def read_content(path: Path) -> tuple[bytes, Signature]:
    """The content of a file and its signature. Raises OSError, _BusyError for a file that is being written."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123  # a path cannot say O_NONBLOCK, and a pipe would block
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):  # it was when the folder was walked
            raise OSError(EINVAL, "it is not a regular file any more")
        before = signature_of(found)
        content: bytes | None = file.read(MAX_FILE_BYTES + 1)
        if content is None:  # a file of the kernel's that would block, as /proc/kmsg
            raise BlockingIOError(EAGAIN, "it has no content now")
        if _is_being_written(descriptor) or signature_of(os.fstat(descriptor)) != before:
            raise _BusyError
        return content, before


def _is_being_written(descriptor: int) -> bool:
    """Whether a process has the file open for writing. False also when that cannot be known.

    The kernel grants a read lease only if no process has. A process that opens the file during this lease waits a
    microsecond for its end. The kernel asks for that end with a signal that is ignored here.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:  # others: of another user, or on a file system without leases
        return error.errno == EAGAIN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
