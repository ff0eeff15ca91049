"""How deep msgpack bytes nest and how many values they hold, found without recursion and before they are decoded.

A decoder's recursion may exhaust the stack, which kills. A megabyte can be a million values, each an object to make.
"""

from __future__ import annotations

from typing import Final

from dspy_registry.registry_store.layout import MAX_METADATA_DEPTH, MAX_RECORD_VALUES

DEEPEST: Final = MAX_METADATA_DEPTH + 8
"""How many levels bytes from outside may nest: those of a record, and some for the message around it."""

_SAFE_DEPTH: Final = 4000  # a decoder takes about 400 bytes of stack for each level; a thread has 8 MiB
MOST_VALUES: Final = 2 * MAX_RECORD_VALUES + 1024
"""Values that bytes from outside may hold: those of a record with their keys, and what stands around them."""

DEEP, MANY = "nests too deep", "holds too many values"

_CONTAINERS: Final = bytes((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))
_OTHERS: Final = bytes(set(range(256)) - set(_CONTAINERS))

# How many bytes follow a scalar's first byte. Negative: a length field of that many bytes follows, then the content.
_SCALAR_BYTES: Final = {0xC4: -1, 0xC5: -2, 0xC6: -4, 0xC7: -1, 0xC8: -2, 0xC9: -4} | dict(
    zip(range(0xCA, 0xDC), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17, -1, -2, -4), strict=True)
)
_CONTAINER_LENGTH: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def excess(data: bytes) -> str:
    """DEEP or MANY for bytes that must not be decoded, by what a walk finds first; else empty.

    Each value takes a byte, and there is no deeper nesting than there are bytes that could begin a container. That
    alone settles nearly all.
    """
    if len(data) <= MOST_VALUES and len(data.translate(None, _OTHERS)) <= _SAFE_DEPTH:
        return ""
    return _found(data, DEEPEST, MOST_VALUES)


def _found(data: bytes, deepest: int, most: int) -> str:
    """Walks the bytes; those that are no msgpack end it, as they end a decoder."""
    at, size = 0, len(data)
    open_items: list[int] = []  # of each container around here, how many items are still to come
    for _ in range(most):
        if at >= size:
            return ""
        items, at = _step(data, at)
        if items:
            if len(open_items) == deepest:
                return DEEP
            open_items.append(items)
            continue
        while open_items:
            open_items[-1] -= 1
            if open_items[-1]:
                break
            open_items.pop()
    return MANY if at < size else ""


def _step(data: bytes, at: int) -> tuple[int, int]:
    """How many items the container that begins here holds (0: it is a scalar), and where the next value begins."""
    first = data[at]
    at += 1
    if first < 0x80 or first >= 0xE0 or first in (0xC0, 0xC1, 0xC2, 0xC3):
        return 0, at
    if first < 0xA0:
        return (first & 15) * (2 if first < 0x90 else 1), at
    if first < 0xC0:
        return 0, at + (first & 31)
    if first in _CONTAINER_LENGTH:
        width, each = _CONTAINER_LENGTH[first]
        return int.from_bytes(data[at : at + width], "big") * each, at + width
    size = _SCALAR_BYTES[first]
    if size > 0:
        return 0, at + size
    length = int.from_bytes(data[at : at - size], "big")
    return 0, at - size + length + (1 if 0xC7 <= first <= 0xC9 else 0)
