"""LMDB's two meta pages and its list of free pages, read from data.mdb with plain reads: nothing is mapped.

LMDB maps the file and believes its meta pages. Where the file is shorter than they say, a look at the map is a SIGBUS.
So whoever opens LMDB looks here first. What is read here is of LMDB 0.9's format, little-endian:

    page   0    number, 8                 meta   16   magic, 4; version, 4
           10   flags, 2                         40   tree of free pages, 48: page size, 4; …; at 40 its root, 8
           12   end of pointers, 2               88   main tree, 48
           16   pointers, 2 each                 136  last page, 8
                                                 144  transaction, 8

    node   0    size of the value, 4 (in a branch: child's number, with the next 2)
           4    flags, 2;  size of the key, 2;  key;  value, or the number of its overflow page
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

META_BYTES: Final = 152
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_NO_PAGE: Final = 2**64 - 1
_BRANCH, _LEAF, _OVERFLOW, _META = 0x01, 0x02, 0x04, 0x08
_BIG: Final = 0x01
_DEEPEST: Final = 32

_PAGE: Final = struct.Struct("<QHHHH")
_POINTERS_AT: Final = _PAGE.size
_NODE: Final = struct.Struct("<HHHH")
_NUMBER: Final = struct.Struct("<Q")
_META_PAGE: Final = struct.Struct("<10xH4xII16xI92xQQ")
_META_HEAD: Final = struct.Struct("<II")
_META_TAIL: Final = struct.Struct("<QQ")


class MetaPage(NamedTuple):
    """What one meta page says: page size in bytes, last page used, transaction, roots (None: an empty tree)."""

    page_bytes: int
    last_page: int
    transaction: int
    free_root: int | None
    main_root: int | None

    @property
    def file_bytes(self) -> int:
        """How long the file is when its last page was written."""
        return (self.last_page + 1) * self.page_bytes


class DamagedPageError(Exception):
    """A page that is not what it must be, or that lies beyond the end of the file."""


def parse_meta_page(content: bytes) -> MetaPage | None:
    """The meta page in these bytes; None where they are none."""
    if len(content) < META_BYTES or not _PAGE.unpack_from(content)[2] & _META:
        return None
    if _META_HEAD.unpack_from(content, 16) != (_MAGIC, _VERSION):
        return None
    page_bytes: int = struct.unpack_from("<I", content, 40)[0]
    if not 512 <= page_bytes <= 65536 or page_bytes & (page_bytes - 1):
        return None
    roots = (_NUMBER.unpack_from(content, at + 40)[0] for at in (40, 88))
    free, main = (None if root == _NO_PAGE else root for root in roots)
    last_page, transaction = _META_TAIL.unpack_from(content, 136)
    return MetaPage(page_bytes, last_page, transaction, free, main)


def read_meta_pages(descriptor: int) -> tuple[MetaPage, MetaPage] | None:
    """Both meta pages, the newer one last; None where either is missing or no meta page. Raises OSError."""
    first = parse_meta_page(os.pread(descriptor, META_BYTES, 0))
    second = first and parse_meta_page(os.pread(descriptor, META_BYTES, first.page_bytes))
    if first is None or second is None:
        return None
    return (first, second) if first.transaction < second.transaction else (second, first)


def plain_file_bytes(head: bytes, page_bytes: int) -> int | None:
    """How long the file must be by the newer of its meta pages, given its first page and META_BYTES more.

    None where they are not two meta pages of this page size. A quick look for the usual case, at every opening.
    """
    if len(head) != page_bytes + META_BYTES:
        return None
    *first, first_last, _ = _META_PAGE.unpack_from(head)
    *second, second_last, _ = _META_PAGE.unpack_from(head, page_bytes)
    if first != second or first != [_META, _MAGIC, _VERSION, page_bytes]:
        return None
    last: int = max(first_last, second_last)
    return (last + 1) * page_bytes


def is_unfinished_first_write(content: bytes, page_bytes: int) -> bool:
    """Whether these bytes, a whole file, are what a power loss may leave of LMDB's very first write; no bytes are too.

    That write is two meta pages of transaction 0, each filled up with zeros. A sector that was not written is zero.
    """
    pages = (content[:page_bytes], content[page_bytes:])
    is_whole = len(content) == 2 * page_bytes and all(map(_is_first_meta, pages))
    return len(content) <= 2 * page_bytes and not is_whole and all(not any(p) or _is_first_meta(p) for p in pages)


def _is_first_meta(page: bytes) -> bool:
    meta = parse_meta_page(page)
    if meta is None or meta.transaction or meta.free_root is not None or meta.main_root is not None:
        return False
    return not any(page[META_BYTES:])


def free_pages(descriptor: int, meta: MetaPage) -> Iterator[int]:
    """The numbers of all pages that the tree of free pages lists. Raises DamagedPageError, OSError."""
    pages = _Pages(descriptor, meta.page_bytes)
    for value in pages.values(meta.free_root, _DEEPEST):
        count = _NUMBER.unpack_from(value)[0] if len(value) >= 8 else 0
        if len(value) < 8 * (count + 1):
            raise DamagedPageError("a list of free pages is cut short")
        yield from struct.unpack_from(f"<{count}Q", value, 8)


class _Pages:
    """Pages of the file, by plain reads."""

    def __init__(self, descriptor: int, page_bytes: int) -> None:
        self._descriptor = descriptor
        self._page_bytes = page_bytes

    def values(self, root: int | None, depth: int) -> Iterator[bytes]:
        """The values of a tree, in the order of their keys."""
        if root is None:
            return
        page, flags = self._page(root)
        end = _PAGE.unpack_from(page)[3]
        if not depth or not flags & (_BRANCH | _LEAF) or not _POINTERS_AT <= end <= len(page):
            raise DamagedPageError(f"page {root} is no page of a tree")
        for at in struct.unpack_from(f"<{(end - _POINTERS_AT) // 2}H", page, _POINTERS_AT):
            if at + _NODE.size > len(page):
                raise DamagedPageError(f"page {root} has a node beyond its end")
            low, high, more, key = _NODE.unpack_from(page, at)
            if flags & _BRANCH:
                yield from self.values(low | high << 16 | more << 32, depth - 1)
            else:
                yield self._value(page, at + _NODE.size + key, low | high << 16, more)

    def _value(self, page: bytes, at: int, size: int, flags: int) -> bytes:
        if not flags & _BIG:
            return page[at : at + size]
        if at + 8 > len(page):
            raise DamagedPageError("a node lies beyond the end of its page")
        number: int = _NUMBER.unpack_from(page, at)[0]
        if not self._page(number)[1] & _OVERFLOW:
            raise DamagedPageError(f"page {number} is no overflow page")
        return self._read(number * self._page_bytes + _POINTERS_AT, size)

    def _page(self, number: int) -> tuple[bytes, int]:
        page = self._read(number * self._page_bytes, self._page_bytes)
        return page, _PAGE.unpack_from(page)[2]

    def _read(self, start: int, size: int) -> bytes:
        content = os.pread(self._descriptor, size, start) if start < 2**63 else b""
        if len(content) != size:
            raise DamagedPageError(f"the file ends before byte {start + size}")
        return content
