"""LMDB's two meta pages and its list of free pages, read from data.mdb with plain reads: nothing is mapped.

LMDB maps the file and believes its meta pages. Where the file is shorter than they say, a look at the map is a SIGBUS.
So the code that opens LMDB looks here first. What is read here is of LMDB 0.9's format, little-endian:

    10   flags, 2
    16   magic, 4; version, 4
    40   tree of free pages, 48: page size, 4; flags, 2; …; at 40 its root, 8
    88   main tree, 48: the same, with 0 for the page size
    136  last page, 8
    144  transaction, 8
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from dspy_registry.registry_store.tree_pages import META, NO_PAGE, NUMBER, DamagedPageError, TreePages, root_of

META_BYTES: Final = 152
FIRST_PAGES: Final = 3
"""The meta pages and the page of transaction 1: a file of no more pages never held a registry's head."""

_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_TREE_FLAGS: Final = [8, 0]  # of free pages: numbers as keys; of the main tree: none. LMDB aborts at others
_FLAGS: Final = struct.Struct("<10xH")
_BOTH_TREES: Final = struct.Struct("<44xH46xH")
_META_PAGE: Final = struct.Struct("<10xH4xII16xIH46xH42xQQ")
_META_HEAD: Final = struct.Struct("<II")
_META_TAIL: Final = struct.Struct("<QQ")


class MetaPage(msgspec.Struct, frozen=True, gc=False):
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


def parse_meta_page(content: bytes) -> MetaPage | None:
    """The meta page in these bytes; None where they are none."""
    if len(content) < META_BYTES or not _FLAGS.unpack_from(content)[0] & META:
        return None
    if _META_HEAD.unpack_from(content, 16) != (_MAGIC, _VERSION):
        return None
    page_bytes: int = struct.unpack_from("<I", content, 40)[0]
    if not 512 <= page_bytes <= 65536 or page_bytes & (page_bytes - 1):
        return None
    if list(_BOTH_TREES.unpack_from(content)) != _TREE_FLAGS:
        return None
    roots = (NUMBER.unpack_from(content, at + 40)[0] for at in (40, 88))
    free, main = (None if root == NO_PAGE else root for root in roots)
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
    if first != second or first != [META, _MAGIC, _VERSION, page_bytes, *_TREE_FLAGS]:
        return None
    last: int = max(first_last, second_last)
    return (last + 1) * page_bytes


def is_unfinished_first_write(content: bytes, page_bytes: int) -> bool:
    """Whether these bytes, a whole file, are what a power loss may leave of LMDB's first writes; no bytes are too.

    The first is two meta pages of transaction 0, each filled up with zeros. A sector that was not written is zero.
    LMDB does not sync it before it writes the one page of transaction 1, so that page may be there without the two.
    """
    pages = (content[:page_bytes], content[page_bytes : 2 * page_bytes])
    is_whole = len(content) >= 2 * page_bytes and all(map(_is_first_meta, pages))
    return (
        len(content) <= FIRST_PAGES * page_bytes
        and not is_whole
        and all(not any(p) or _is_first_meta(p) for p in pages)
    )


def _is_first_meta(page: bytes) -> bool:
    meta = parse_meta_page(page)
    if meta is None or meta.transaction or meta.free_root is not None or meta.main_root is not None:
        return False
    return not any(page[META_BYTES:])


def free_pages(descriptor: int, meta: MetaPage) -> Iterator[int]:
    """The numbers of all pages that the tree of free pages lists. Raises DamagedPageError, OSError."""
    for row in TreePages(descriptor, meta.page_bytes).rows(meta.free_root):
        count = NUMBER.unpack_from(row.value)[0] if len(row.value) >= 8 else 0
        if len(row.value) < 8 * (count + 1):
            raise DamagedPageError("a list of free pages is cut short")
        yield from struct.unpack_from(f"<{count}Q", row.value, 8)


def database_roots(descriptor: int, meta: MetaPage) -> Iterator[int]:
    """The root pages of all named databases that are not empty. Raises DamagedPageError, OSError."""
    for row in TreePages(descriptor, meta.page_bytes).rows(meta.main_root):
        root = root_of(row.value) if row.is_tree else None
        if root is not None:
            yield root
