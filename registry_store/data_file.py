"""data.mdb before LMDB opens it: whether it is whole, whether its creation was finished, and how much is unused.

Only what was never completed may be created again. A creation makes the `revision` file last. So where there is one, a
data.mdb that is missing or empty was lost, and with it what was acknowledged.
"""

from __future__ import annotations

import mmap
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dspy_registry.registry_store import meta_pages, own_files
from dspy_registry.registry_store.disk import explained
from dspy_registry.registry_store.errors import DamagedStoreError, RegistryNotFoundError, StorePermissionError
from dspy_registry.registry_store.layout import DATA_FILE, REVISION_FILE
from dspy_registry.registry_store.meta_pages import MetaPage
from dspy_registry.registry_store.tree_pages import DamagedPageError

_LOOKS: Final = 5
"""A writer at work may replace what is being read, so damage is what is still there at the last look."""
_PAUSE: Final = 0.002
_HEAD_BYTES: Final = mmap.PAGESIZE + meta_pages.META_BYTES

NOT_OURS: Final = "Is this a registry's folder? If it is one, restore data.mdb from a backup. Nothing was changed."


def has_revision_file(folder: Path) -> bool:
    """Whether a registry in this folder was completed once."""
    return os.path.lexists(folder / REVISION_FILE)


def refuse_damaged(folder: Path) -> None:
    """Compare the file with what its meta pages say, before anything of it is mapped.

    Raises DamagedStoreError, StorePermissionError, StoreError, and RegistryNotFoundError where there is no data.mdb or
    its creation has not come to its end.
    """
    if not _is_plainly_whole(f"{folder}/{DATA_FILE}"):
        _refuse_damaged(folder)


def _is_plainly_whole(path: str) -> bool:
    """False says nothing against it. Every reader that opens the registry pays for this look."""
    try:
        descriptor = os.open(path, own_files.FLAGS)
    except OSError:
        return False
    try:
        needed = meta_pages.plain_file_bytes(os.pread(descriptor, _HEAD_BYTES, 0), mmap.PAGESIZE)
        status = os.fstat(descriptor)
    except OSError:  # a pipe cannot be read at a place
        return False
    finally:
        os.close(descriptor)
    return needed is not None and status.st_size >= needed and stat.S_ISREG(status.st_mode)


def _refuse_damaged(folder: Path) -> None:
    with _opened(folder) as descriptor:
        problem = _problem(descriptor)
        for _ in range(_LOOKS):
            if problem is None:
                return
            time.sleep(_PAUSE)
            problem = _problem(descriptor)
    if is_unfinished(folder):
        refuse_loss(folder)
        raise RegistryNotFoundError(f"the registry in {folder} is not complete yet.")
    raise problem_of(folder, problem or "is damaged")


def is_unfinished(folder: Path) -> bool:
    """Whether data.mdb is missing, or LMDB's first write to it never came to its end."""
    try:
        with _opened(folder) as descriptor:
            content = os.pread(descriptor, meta_pages.FIRST_PAGES * mmap.PAGESIZE + 1, 0)
    except RegistryNotFoundError:
        return True
    return meta_pages.is_unfinished_first_write(content, mmap.PAGESIZE)


def refuse_loss(folder: Path) -> None:
    """Where data.mdb is missing or empty: raises DamagedStoreError if a registry was complete here."""
    if has_revision_file(folder):
        what = "is empty" if os.path.lexists(folder / DATA_FILE) else "is missing"
        raise problem_of(folder, f"{what}, and the file `revision` shows that there was a registry")


def refuse_freed_root(folder: Path) -> None:
    """Raises DamagedStoreError where the main root is a free page, or an old page that leads to free pages.

    So it is in a copy made under a writer, and where an old page was put in the place of the main root. What such a
    root leads to was used again since. For the writer, and for `check`: it reads the whole list of free pages.
    """
    with _opened(folder) as descriptor:
        problem = _problem_of_root(descriptor)
        for _ in range(_LOOKS):
            if problem is None:
                return
            time.sleep(_PAUSE)
            problem = _problem_of_root(descriptor)
    raise problem_of(folder, problem or "is damaged")


def _problem_of_root(descriptor: int) -> str | None:
    found = meta_pages.read_meta_pages(descriptor)
    if found is None:
        return None
    try:
        free = set(meta_pages.free_pages(descriptor, found[1]))
    except DamagedPageError as error:
        return f"has a damaged list of free pages: {error}"
    if found[1].main_root in free:
        return "has a free page for its main root: it was copied while it was being written"
    try:
        is_old = not free.isdisjoint(meta_pages.database_roots(descriptor, found[1]))
    except DamagedPageError as error:
        return f"has a damaged main root: {error}"
    return "has an old page for its main root: databases that it names begin with free pages" if is_old else None


def problem_of(folder: Path, problem: str, remedy: str | None = None) -> DamagedStoreError:
    """The error for a data.mdb of which something is wrong. `remedy` None: that of all damage."""
    return DamagedStoreError(f"{folder / DATA_FILE} {problem}.", remedy=remedy)


def unused_pages(folder: Path) -> tuple[int, int] | None:
    """How many pages of the file hold nothing now, and how many it has. None while a writer keeps changing it.

    Pages that an open snapshot still needs count as unused. Raises StoreError.
    """
    with _opened(folder) as descriptor:
        for _ in range(_LOOKS):
            found = meta_pages.read_meta_pages(descriptor)
            if found is None:
                return None
            try:
                unused = sum(1 for _ in meta_pages.free_pages(descriptor, found[1]))
            except DamagedPageError:
                continue
            if meta_pages.read_meta_pages(descriptor) == found:
                return unused, found[1].last_page + 1
    return None


def _problem(descriptor: int) -> str | None:
    found = meta_pages.read_meta_pages(descriptor)
    size = os.fstat(descriptor).st_size  # read after the pages: a writer that is at work makes the file longer first
    if found is None:
        return "has no sound meta pages: it was overwritten, or is not a file of LMDB 0.9"
    needed = max(page.file_bytes for page in found)
    if size < needed and not _may_be_short(descriptor, size, found[1]):
        return f"was cut short: it has {size} bytes, and its meta pages tell of {needed}"
    return None


def _may_be_short(descriptor: int, size: int, newest: MetaPage) -> bool:
    """Whether all pages beyond the end of the file are free.

    LMDB does not write a page that one and the same transaction took and gave back. Where such pages are the last, the
    file ends before them.
    """
    first = size // newest.page_bytes
    try:  # counted, not listed: a damaged meta page may tell of 2**60 pages
        beyond = {page for page in meta_pages.free_pages(descriptor, newest) if first <= page <= newest.last_page}
    except DamagedPageError:
        return False
    return len(beyond) == newest.last_page + 1 - first


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    path = folder / DATA_FILE
    with explained(folder):
        try:
            descriptor = own_files.open_file(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RegistryNotFoundError(f"there is no registry in {folder}.") from error
        except PermissionError as error:
            raise StorePermissionError(
                f"{path} cannot be read: {error.strerror}.",
                remedy="Run readers as the writer's user or group, or let them read the folder.",
            ) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)
