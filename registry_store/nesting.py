"""How deep msgpack bytes nest, found without recursion. A decoder recurses: it can exhaust the stack and be killed."""

from __future__ import annotations

from typing import Final

from dspy_registry.registry_store.layout import MAX_METADATA_DEPTH

DEEPEST: Final = MAX_METADATA_DEPTH + 8
"""How many levels bytes from outside may nest: those of a record, and some for the message around it."""

_SAFE_DEPTH: Final = 4000  # a decoder takes about 400 bytes of stack for each level; a thread has 8 MiB
_CONTAINERS: Final = bytes((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))
_OTHERS: Final = bytes(set(range(256)) - set(_CONTAINERS))

# How many bytes follow a scalar's first byte. Negative: so many bytes of a length field follow, then the content.
_SCALAR_BYTES: Final = {0xC4: -1, 0xC5: -2, 0xC6: -4, 0xC7: -1, 0xC8: -2, 0xC9: -4} | dict(
    zip(range(0xCA, 0xDC), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17, -1, -2, -4), strict=True)
)
_CONTAINER_LENGTH: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def is_shallow(data: bytes) -> bool:
    """Whether these bytes can be decoded without exhausting the stack.

    Each level needs a byte that can begin a container. Counting such bytes is enough for nearly all messages.
    """
    return len(data.translate(None, _OTHERS)) <= _SAFE_DEPTH or not _nests_deeper(data, DEEPEST)


def _nests_deeper(data: bytes, limit: int) -> bool:
    """Walks the bytes. It stops at bytes that are not msgpack, as a decoder does."""
    at, size = 0, len(data)
    open_items: list[int] = []  # for each container that is open here: how many items are still to come
    while at < size:
        items, at = _step(data, at)
        if items:
            if len(open_items) == limit:
                return True
            open_items.append(items)
            continue
        while open_items:
            open_items[-1] -= 1
            if open_items[-1]:
                break
            open_items.pop()
    return False


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
