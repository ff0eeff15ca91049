"""How deep msgpack bytes nest and how many values they hold, found without recursion and before they are decoded.

A decoder's recursion may exhaust the stack, which kills. A megabyte can be a million values, each an object to make.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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


def _meanings() -> Iterator[tuple[int, int]]:
    """Of each first byte: how many bytes to the next value (0: a length field follows), and how many items it has."""
    for first in range(256):
        if first < 0x80 or first >= 0xE0 or 0xC0 <= first <= 0xC3:
            yield 1, 0
        elif first < 0xA0:
            yield 1, (first & 15) * (2 if first < 0x90 else 1)
        elif first < 0xC0:
            yield 1 + (first & 31), 0
        else:
            yield 1 + max(_SCALAR_BYTES.get(first, -1), -1), 0


_MEANINGS: Final = tuple(_meanings())

# Values of one byte, empty texts and empty containers too. A run of them is passed at once.
_SINGLES: Final = bytes(first for first, meaning in enumerate(_MEANINGS) if meaning == (1, 0))
_pass_singles: Final = re.compile(b"[%b]*" % re.escape(_SINGLES)).match
_SHORT: Final = 4  # looking for a run takes as long as some steps
_STEPS_AFTER_A_SHORT_RUN: Final = 32  # so that bytes in which all runs are short take no longer than steps do


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
    left = size + 1  # items to come in the container around here; there are no more values than bytes
    outer: list[int] = []  # the same of those around it
    stepping_to = most  # no run is looked for while `most` is above
    while at < size and most > 0:
        step, items = _MEANINGS[data[at]]
        if step == 1 and not items and left > _SHORT and most <= stepping_to:
            run = _pass_singles(data, at, at + min(left, most)).end() - at  # type: ignore[union-attr]
            at, left, most = at + run, left - run, most - run
            if run < _SHORT:
                stepping_to = most - _STEPS_AFTER_A_SHORT_RUN
        else:
            if not step:
                step, items = _measured(data, at)
            at += step
            left -= 1
            most -= 1
            if items:
                if len(outer) == deepest:
                    return DEEP
                outer.append(left)
                left = items
        while not left:
            left = outer.pop()
    return MANY if at < size else ""


def _measured(data: bytes, at: int) -> tuple[int, int]:
    """As `_meanings`, of a value whose length stands behind its first byte."""
    first = data[at]
    if first in _CONTAINER_LENGTH:
        width, each = _CONTAINER_LENGTH[first]
        return 1 + width, int.from_bytes(data[at + 1 : at + 1 + width], "big") * each
    width = -_SCALAR_BYTES[first]
    length = int.from_bytes(data[at + 1 : at + 1 + width], "big")
    return 1 + width + length + (1 if 0xC7 <= first <= 0xC9 else 0), 0
