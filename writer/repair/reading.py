"""What can still be read of a data.mdb: its newest state, the one before, and pages that no tree reaches any longer.

All by plain reads of data.mdb. Nothing is mapped, so no damage ends the process, and nothing in the folder is written.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.changes import State, state_codec
from dspy_registry.registry_store.disk import explained
from dspy_registry.registry_store.meta_pages import META_BYTES, MetaPage, parse_meta_page
from dspy_registry.registry_store.own_files import open_file
from dspy_registry.registry_store.tree_pages import DamagedPageError, Row, TreePages, entries_of, root_of
from dspy_registry.writer.repair.soundness import READ, age_of, problem_of

NEWEST: Final = "the newest state"
BEFORE: Final = "the state before"
LOOSE: Final = "a page that no tree reaches: it may be older"

_LATEST: Final = layout.FORMAT_VERSION
_PROBLEMS_KEPT: Final = 20

Rows = dict[bytes, bytes]
Reading = Callable[[int, int], None]


class Found:
    """The sound rows of a data.mdb, by database and key.

    `origin` says where a row came from that is not of the newest state. `unsound` says what was wrong with the rows
    that no place had sound. `broken` are the databases of which pages cannot be read. `entries` is how many rows the
    newest state says that a database has.
    """

    def __init__(self) -> None:
        self.format = _LATEST
        self.rows: dict[bytes, Rows] = {name: {} for name in READ}
        self.origin: dict[tuple[bytes, bytes], str] = {}
        self.unsound: dict[tuple[bytes, bytes], str] = {}
        self.entries: dict[bytes, int] = {}
        self.broken: dict[bytes, list[str]] = {}

    def take(self, database: bytes, key: bytes, value: bytes, origin: str) -> None:
        """Keep a row if it is sound, and there is none yet."""
        if database not in self.rows or key in self.rows[database]:
            return
        problem = problem_of(database, key, value, self.format)
        if problem is not None:
            self.unsound.setdefault((database, key), problem)
            return
        self._keep(database, key, value, origin)

    def take_newer(self, database: bytes, key: bytes, value: bytes) -> None:
        """Keep a row of a page that no tree reaches, if it is sound and no older than what was found there."""
        if problem_of(database, key, value, self.format) is not None:
            return
        kept = self.rows[database].get(key)
        if kept is not None:
            is_loose = self.origin.get((database, key)) == LOOSE
            if not is_loose or self._age(database, key, value) <= self._age(database, key, kept):
                return
        self._keep(database, key, value, LOOSE)

    def _age(self, database: bytes, key: bytes, value: bytes) -> int:
        return age_of(database, key, value, self.format)

    def _keep(self, database: bytes, key: bytes, value: bytes, origin: str) -> None:
        self.rows[database][key] = value
        self.unsound.pop((database, key), None)
        if origin != NEWEST:
            self.origin[database, key] = origin

    def tell(self, database: bytes, error: DamagedPageError) -> None:
        """Remember that a page of a database cannot be read."""
        told = self.broken.setdefault(database, [])
        if len(told) < _PROBLEMS_KEPT:
            told.append(str(error))

    def lacks(self, database: bytes) -> bool:
        """Whether rows of a database may be missing."""
        return not self.is_whole(database) or any(name == database for name, _ in self.unsound)

    def is_whole(self, database: bytes) -> bool:
        """Whether the key of each row is known: no page is unreadable, and there are as many as the tree counts."""
        return database not in self.broken and not self.unnamed(database)

    def unnamed(self, database: bytes) -> int:
        """How many rows the newest state has by its own count whose keys nobody knows."""
        named = len(self.rows[database]) + sum(name == database for name, _ in self.unsound)
        return max(0, self.entries.get(database, 0) - named)


def read(folder: Path, progress: Reading | None = None) -> Found:
    """What can be read of the registry in `folder`; nothing where there is no data.mdb. Raises StoreError."""
    found = Found()
    try:
        with explained(folder):
            descriptor = open_file(folder / layout.DATA_FILE, os.O_RDONLY)
            try:
                _read(descriptor, found, progress or (lambda _done, _total: None))
            finally:
                os.close(descriptor)
    except OSError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        found.broken = {name: ["data.mdb is missing"] for name in READ}
    return found


def _read(descriptor: int, found: Found, progress: Reading) -> None:
    states = _States(descriptor, _meta_pages(descriptor))
    found.format = states.format
    steps = len(READ) + 1
    for step, database in enumerate(READ):
        progress(step, steps)
        _read_database(states, database, found)
    if found.broken:
        _read_loose(descriptor, states, found)
    progress(steps, steps)


def _read_database(states: _States, database: bytes, found: Found) -> None:
    if not states.pages:
        found.tell(database, DamagedPageError("neither meta page can be read"))
        return
    newest, *before = states.pages
    found.entries[database] = states.entries(newest, database)
    for row in states.rows(newest, database, lambda error: found.tell(database, error)):
        found.take(database, row.key, row.value, NEWEST)
    for page in before if found.lacks(database) else ():
        is_whole = found.is_whole(database)
        for row in states.rows(page, database, lambda _: None):
            if not is_whole or (database, row.key) in found.unsound:
                found.take(database, row.key, row.value, BEFORE)


def _read_loose(descriptor: int, states: _States, found: Found) -> None:
    size = os.fstat(descriptor).st_size
    broken = [name for name in READ if name in found.broken and (found.format > 1 or name in layout.SEALED_ALONE)]
    pages = TreePages(descriptor, states.page_bytes, lambda _: None)
    for row in pages.leaves(size // states.page_bytes):
        for database in () if row.is_tree else broken:
            found.take_newer(database, row.key, row.value)


def _meta_pages(descriptor: int) -> list[MetaPage]:
    first = parse_meta_page(os.pread(descriptor, META_BYTES, 0))
    second = parse_meta_page(os.pread(descriptor, META_BYTES, first.page_bytes if first else mmap.PAGESIZE))
    return [page for page in (first, second) if page is not None]


class _States:
    """The states that the meta pages lead to, the newest first, by the revision that their heads name.

    Not by the transaction's number alone: one bit of it may be what is damaged.
    """

    def __init__(self, descriptor: int, pages: list[MetaPage]) -> None:
        self._descriptor = descriptor
        self.page_bytes = pages[0].page_bytes if pages else mmap.PAGESIZE
        self._trees = {page: self._named(page) for page in pages}
        self.format = max((self._format(page) for page in pages), default=_LATEST) or _LATEST
        self.pages = sorted(pages, key=lambda page: (self._revision(page), page.transaction), reverse=True)

    def rows(self, page: MetaPage, database: bytes, damaged: Callable[[DamagedPageError], None]) -> Iterator[Row]:
        """The rows of a named database in one state. Where the database is not found, that is damage too."""
        tree = self._trees[page].get(database)
        if tree is None:
            if self.format > 1 or database in layout.DATABASES_OF_FORMAT_1:
                damaged(DamagedPageError("the database is not found"))
            return iter(())
        try:
            root = root_of(tree)
        except DamagedPageError as error:
            damaged(error)
            return iter(())
        return TreePages(self._descriptor, page.page_bytes, damaged).rows(root)

    def entries(self, page: MetaPage, database: bytes) -> int:
        tree = self._trees[page].get(database)
        return 0 if tree is None or len(tree) < 48 else entries_of(tree)

    def _named(self, page: MetaPage) -> dict[bytes, bytes]:
        rows = TreePages(self._descriptor, page.page_bytes, lambda _: None).rows(page.main_root)
        return {row.key: row.value for row in rows if row.is_tree}

    def _meta_row(self, page: MetaPage, wanted: bytes) -> bytes | None:
        if layout.META not in self._trees[page]:
            return None
        try:
            root = root_of(self._trees[page][layout.META])
        except DamagedPageError:
            return None
        rows = TreePages(self._descriptor, page.page_bytes, lambda _: None).rows(root)
        return next((row.value for row in rows if row.key == wanted), None)

    def _format(self, page: MetaPage) -> int:
        stored = self._meta_row(page, layout.META_FORMAT) or b""
        known = len(stored) == 1 and stored.isdigit() and layout.FIRST_FORMAT <= int(stored) <= _LATEST
        return int(stored) if known else 0

    def _revision(self, page: MetaPage) -> int:
        stored = self._meta_row(page, layout.META_STATE)
        if stored is None or problem_of(layout.META, layout.META_STATE, stored, self.format) is not None:
            return -1
        state: State = state_codec.load(stored, layout.META_STATE, self.format)
        return state.revision
