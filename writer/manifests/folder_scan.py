"""Walking a folder of manifests: which files there are, and which places must be watched to notice a change.

Links are followed. Each folder and each linked file counts once. Names that begin with a dot are skipped (`.git`,
editors' files, Kubernetes' `..data`), but a link through such a name is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

import msgspec

from dspy_registry.writer.manifests.declarations import ManifestError
from dspy_registry.writer.manifests.links import LinkedPaths
from dspy_registry.writer.manifests.text import SUFFIXES

MAX_FILES: Final = 10_000
MAX_PATH_BYTES: Final = 246  # a source, which has a prefix, then has at most 255 bytes
SCHEMA_SUFFIX: Final = ".schema.json"
"""The end of the names of schemas for editors, which are not manifests."""

_LEADS_NOWHERE: Final = (errno.ENOENT, errno.ENOTDIR)

Identity = tuple[int, int]
Signature = tuple[int, ...]
"""Device, inode, size and times of change. It differs between two contents of a file."""


class FoundFile(msgspec.Struct, frozen=True):
    """A manifest: its real path and its signature, or the problem that prevents reading it."""

    path: Path
    signature: Signature = ()
    problem: str = ""


class Places(msgspec.Struct, frozen=True):
    """Where a change matters: in `folders`, at any name without a leading dot, and at the paths in `names`.

    `watched` are these folders and the folders of the names, with device and inode, which tell a replaced folder.
    `checkouts` are the real folders that git may be rewriting.
    """

    folders: frozenset[str]
    names: frozenset[str]
    watched: frozenset[tuple[str, int, int]]
    checkouts: frozenset[str]

    def matter(self, path: str) -> bool:
        """Whether a change of this path can change the manifests."""
        folder, _, name = path.rpartition("/")
        return path in self.names or path in self.folders or (folder in self.folders and not name.startswith("."))


class Scan(msgspec.Struct, frozen=True):
    """The files by their path relative to the folder. For `unknown` and `errors` see `tree.Tree`."""

    files: dict[str, FoundFile]
    places: Places
    unknown: tuple[str, ...] = ()
    errors: tuple[ManifestError, ...] = ()


def scan(root: Path) -> Scan:
    """Walk the folder, an absolute path. Errors of reading are in the result, and not raised."""
    walk = _Walk(root)
    walk.run()
    if len(walk.files) > MAX_FILES:
        error = ManifestError("", 0, "", f"more than {MAX_FILES} manifests: nothing was changed")
        return Scan({}, walk.places(), ("",), (error,))
    return Scan(dict(sorted(walk.files.items())), walk.places(), tuple(walk.unknown), tuple(walk.errors))


def signature_of(found: os.stat_result) -> Signature:
    """The signature of a file."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def is_manifest(name: str) -> bool:
    """Whether this is the name of a manifest."""
    return name.endswith(SUFFIXES) and not name.endswith(SCHEMA_SUFFIX) and not name.startswith(".")


class _Walk:
    """Real files and folders come first, then linked folders, then linked files. What was seen before is skipped."""

    def __init__(self, root: Path) -> None:
        self.files: dict[str, FoundFile] = {}
        self.unknown: list[str] = []
        self.errors: list[ManifestError] = []
        self._root = root
        self._folders: dict[Identity, Path] = {}
        self._inodes: set[Identity] = set()
        self._links: list[tuple[str, Path]] = []
        self._linked = LinkedPaths()
        self._checkouts: set[str] = set()

    def run(self) -> None:
        self._linked_tree("", self._root)
        linked_files = []
        while self._links:
            self._links.sort(reverse=True)
            relative, path = self._links.pop()
            try:
                is_folder = stat.S_ISDIR(path.stat().st_mode)
            except OSError as error:
                if error.errno not in _LEADS_NOWHERE and not is_manifest(path.name):
                    self._linked.follow(path)
                    self._unreadable(relative, error)  # a folder, perhaps: what it declared last stays
                    continue
                is_folder = False
            if is_folder:
                self._linked_tree(relative, path)
            elif is_manifest(path.name):
                linked_files.append((relative, path))
        for relative, path in linked_files:
            self._linked_file(relative, path)

    def places(self) -> Places:
        names = frozenset(self._linked.names)
        watched = {(str(path), *identity) for identity, path in self._folders.items()}
        for parent in {Path(name).parent for name in names}:
            try:
                found = parent.stat()
            except OSError:
                continue  # its files cannot be read either, and are looked for again later
            if (found.st_dev, found.st_ino) not in self._folders:
                watched.add((str(parent), found.st_dev, found.st_ino))
        folders = frozenset(map(str, self._folders.values()))
        return Places(folders, names, frozenset(watched), frozenset(self._checkouts))

    def _linked_tree(self, relative: str, path: Path) -> None:
        """Walk it by its real path, so that the paths of notices can be compared with names."""
        real = self._linked.follow(path)
        self._checkouts.add(real)
        self._tree(relative, Path(real))

    def _tree(self, relative: str, path: Path) -> None:
        """Walk a folder and the real folders in it. Links come later."""
        pending = [(relative, path)]
        while pending:
            inside, folder = pending.pop()
            try:
                pending += self._folder(inside, folder)
            except FileNotFoundError as error:
                if not inside:
                    self._unreadable("", error)
            except OSError as error:
                self._unreadable(inside, error)

    def _folder(self, relative: str, folder: Path) -> list[tuple[str, Path]]:
        """Take in the files of one folder, and note its links. Returns the folders in it."""
        found = folder.stat()
        if (found.st_dev, found.st_ino) in self._folders:
            return []
        self._folders[found.st_dev, found.st_ino] = folder
        folders = []
        with os.scandir(folder) as entries:
            for entry in entries:
                inside = f"{relative}/{entry.name}" if relative else entry.name
                if entry.name.startswith("."):
                    continue
                try:
                    if entry.is_symlink():
                        self._links.append((inside, folder / entry.name))
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append((inside, folder / entry.name))
                    elif is_manifest(entry.name):
                        self._file(inside, folder / entry.name, entry.stat(follow_symlinks=False))
                except FileNotFoundError:
                    continue  # gone since
                except OSError as error:
                    self._unreadable(inside, error)
        return folders

    def _linked_file(self, relative: str, path: Path) -> None:
        real = Path(self._linked.follow(path))
        try:
            found = path.stat()
        except OSError as error:
            where = "leads nowhere" if error.errno in _LEADS_NOWHERE else "cannot be followed"
            problem = f"is a link that {where} ({error.strerror})"
            self.files[printable(relative)] = FoundFile(real, problem=problem)
            return
        if (found.st_dev, found.st_ino) not in self._inodes:
            self._file(relative, real, found)

    def _file(self, relative: str, path: Path, found: os.stat_result) -> None:
        problem = _path_problem(relative)
        if not stat.S_ISREG(found.st_mode):
            problem = "is not a regular file"
        self._inodes.add((found.st_dev, found.st_ino))
        self.files[printable(relative)] = FoundFile(path, () if problem else signature_of(found), problem)

    def _unreadable(self, relative: str, error: OSError) -> None:
        shown = printable(relative)
        self.unknown.append(shown)
        self.errors.append(ManifestError(shown, 0, "", f"cannot be read: {error.strerror}"))


def printable(relative: str) -> str:
    """A path that may be shown and stored: control characters and bytes that are not UTF-8 are escaped."""
    text = relative.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _path_problem(relative: str) -> str:
    if printable(relative) != relative:
        return "has a name that is not printable UTF-8: rename it"
    size = len(relative.encode())
    return f"has a path of {size} bytes, at most {MAX_PATH_BYTES} are allowed" if size > MAX_PATH_BYTES else ""
