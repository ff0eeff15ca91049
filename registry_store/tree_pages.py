"""Trees of LMDB, read from data.mdb with plain reads: nothing is mapped, so no damage ends the process.

What is read here is of LMDB 0.9's format, little-endian:

    page   0    number, 8                 node   0    size of the value, 4 (branch: child's number, with the next 2)
           10   flags, 2                         4    flags, 2;  size of the key, 2;  key
           12   end of pointers, 2                    value, or the number of its overflow page
           16   pointers, 2 each
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

NUMBER: Final = struct.Struct("<Q")
NO_PAGE: Final = 2**64 - 1
META: Final = 0x08

_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_BIG, _TREE = 0x01, 0x02
_DEEPEST: Final = 32
_PAGE: Final = struct.Struct("<Q2xHH")
_POINTERS_AT: Final = 16
_NODE: Final = struct.Struct("<HHHH")
_ENTRIES_AT, _ROOT_AT, _TREE_BYTES = 32, 40, 48


class DamagedPageError(Exception):
    """A page that is not what it must be, or that lies beyond the end of the file."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """A key and its value. `is_tree`: the value is the record of a named database."""

    key: bytes
    value: bytes
    is_tree: bool


def root_of(tree: bytes) -> int | None:
    """The root page in the record of a tree; None: the tree is empty. Raises DamagedPageError."""
    if len(tree) != _TREE_BYTES:
        raise DamagedPageError("the record of a tree has another size than it must have")
    root: int = NUMBER.unpack_from(tree, _ROOT_AT)[0]
    return None if root == NO_PAGE else root


def entries_of(tree: bytes) -> int:
    """How many keys the record of a tree says that the tree has."""
    count: int = NUMBER.unpack_from(tree, _ENTRIES_AT)[0]
    return count


class TreePages:
    """Pages of an open data.mdb.

    `damaged` is called with what is wrong with a page or a node, and all others are read. None: DamagedPageError is
    raised. Every method may raise OSError.
    """

    def __init__(self, descriptor: int, page_bytes: int, damaged: Callable[[DamagedPageError], None] | None = None):
        self._descriptor = descriptor
        self._page_bytes = page_bytes
        self._damaged = damaged

    def rows(self, root: int | None) -> Iterator[Row]:
        """The rows of the tree with this root, in the order of their keys. None: an empty tree."""
        return self._rows(root, _DEEPEST, set())

    def leaves(self, pages: int) -> Iterator[Row]:
        """The rows of all leaf pages below this number, whichever tree they are or were of."""
        for number in range(pages):
            try:
                page = self._read(number * self._page_bytes, self._page_bytes)
            except DamagedPageError:  # beyond the end of the file
                return
            if _PAGE.unpack_from(page)[1] == _LEAF:
                yield from self._leaf_rows(page, number)

    def _rows(self, root: int | None, depth: int, seen: set[int]) -> Iterator[Row]:
        if root is None:
            return
        try:
            if root in seen:
                raise DamagedPageError(f"page {root} is twice in one tree")
            seen.add(root)
            page, flags = self._page(root)
            if not depth or not flags & (_BRANCH | _LEAF):
                raise DamagedPageError(f"page {root} is no page of a tree")
        except DamagedPageError as error:
            self._tell(error)
            return
        if flags & _LEAF:
            yield from self._leaf_rows(page, root)
        else:
            for _, low, high, more, _ in self._nodes(page, root):
                yield from self._rows(low | high << 16 | more << 32, depth - 1, seen)

    def _leaf_rows(self, page: bytes, number: int) -> Iterator[Row]:
        for at, low, high, flags, key in self._nodes(page, number):
            start = at + _NODE.size + key
            try:
                value = self._value(page, start, low | high << 16, flags)
            except DamagedPageError as error:
                self._tell(error)
            else:
                yield Row(page[at + _NODE.size : start], value, bool(flags & _TREE))

    def _nodes(self, page: bytes, number: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Where each node begins, and its four numbers."""
        end = _PAGE.unpack_from(page)[2]
        if not _POINTERS_AT <= end <= len(page):
            self._tell(DamagedPageError(f"page {number} is no page of a tree"))
            return
        for at in struct.unpack_from(f"<{(end - _POINTERS_AT) // 2}H", page, _POINTERS_AT):
            if at + _NODE.size > len(page):
                self._tell(DamagedPageError(f"page {number} has a node beyond its end"))
            else:
                yield (at, *_NODE.unpack_from(page, at))

    def _value(self, page: bytes, at: int, size: int, flags: int) -> bytes:
        if not flags & _BIG:
            if at + size > len(page):
                raise DamagedPageError("a node lies beyond the end of its page")
            return page[at : at + size]
        if at + NUMBER.size > len(page):
            raise DamagedPageError("a node lies beyond the end of its page")
        number: int = NUMBER.unpack_from(page, at)[0]
        if not self._page(number)[1] & _OVERFLOW:
            raise DamagedPageError(f"page {number} is no overflow page")
        return self._read(number * self._page_bytes + _POINTERS_AT, size)

    def _page(self, number: int) -> tuple[bytes, int]:
        page = self._read(number * self._page_bytes, self._page_bytes)
        found, flags, _ = _PAGE.unpack_from(page)
        if found != number:
            raise DamagedPageError(f"page {number} says that it is page {found}")
        return page, flags

    def _read(self, start: int, size: int) -> bytes:
        content = os.pread(self._descriptor, size, start) if start < 2**63 else b""
        if len(content) != size:
            raise DamagedPageError(f"the file ends before byte {start + size}")
        return content

    def _tell(self, error: DamagedPageError) -> None:
        if self._damaged is None:
            raise error
        self._damaged(error)
