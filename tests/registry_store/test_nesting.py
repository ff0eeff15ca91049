"""The quick walk over msgpack bytes finds what a plain recursive one finds."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeAlias

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dspy_registry import ModuleInfo
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.layout import MAX_RECORD_VALUES
from dspy_registry.registry_store.nesting import DEEP, DEEPEST, MANY, MOST_VALUES, _found, excess
from tests.support.lines import lines_run

Shape: TypeAlias = "list[Shape]"
"""What a value holds: the shapes of its items, keys too. A scalar and an empty container hold nothing."""
Written: TypeAlias = tuple[bytes, Shape]


class Excess(Exception):
    pass


def model(shapes: list[Shape], deepest: int, most: int) -> str:
    """What is in excess in values that stand one after the other."""
    values = 0

    def walk(shape: Shape, depth: int) -> None:
        nonlocal values
        values += 1
        if values > most:
            raise Excess(MANY)
        if shape and depth == deepest:
            raise Excess(DEEP)
        for item in shape:
            walk(item, depth + 1)

    try:
        for shape in shapes:
            walk(shape, 0)
    except Excess as found:
        return str(found)
    return ""


# Bytes that an encoder may write, the longer forms of short values too

NUMBERS = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
EXTENSIONS = {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
FIXED = NUMBERS | EXTENSIONS
FORMATS = {1: ">B", 2: ">H", 4: ">I"}
MEASURED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
SINGLES = st.sampled_from([*range(0x80), 0xC0, 0xC2, 0xC3, *range(0xE0, 0x100), 0xA0]).map(lambda byte: bytes([byte]))


def content(length: int) -> st.SearchStrategy[bytes]:
    """Bytes that look like containers, of this length."""
    return st.sampled_from((b"\x91", b"\x81", b"\0", b"\xdd")).map(lambda byte: byte * length)


def measured(first: int, text: bytes) -> bytes:
    length = struct.pack(FORMATS[MEASURED[first]], len(text))
    return bytes([first]) + length + (b"\x07" if 0xC7 <= first <= 0xC9 else b"") + text


def scalars() -> st.SearchStrategy[Written]:
    fixed = st.sampled_from(sorted(FIXED)).flatmap(
        lambda first: content(FIXED[first]).map(lambda text: bytes([first]) + text)
    )
    short = st.integers(1, 31).flatmap(lambda size: content(size).map(lambda text: bytes([0xA0 | size]) + text))
    long = st.tuples(st.sampled_from(sorted(MEASURED)), st.integers(0, 40).flatmap(content))
    written = SINGLES | fixed | short | long.map(lambda pair: measured(*pair))
    return written.map(lambda data: (data, []))


def container(items: list[Written], first: int) -> Written:
    """An array, or a mapping of keys and values, in the form that `first` begins."""
    each = 2 if first in (0x80, 0xDE, 0xDF) else 1
    items = items[: len(items) // each * each]
    count = len(items) // each
    if first in (0x80, 0x90) and count < 16:
        head = bytes([first | count])
    elif first in (0xDE, 0xDC, 0x80, 0x90):
        head = bytes([0xDE if each == 2 else 0xDC]) + struct.pack(">H", count)
    else:
        head = bytes([first]) + struct.pack(">I", count)
    return head + b"".join(data for data, _ in items), [shape for _, shape in items]


def containers(inner: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    runs = st.tuples(inner, st.integers(1, 40)).map(lambda run: [run[0]] * run[1])
    items = st.lists(inner, max_size=6) | st.lists(runs, max_size=3).map(lambda found: list(chain(*found)))
    return st.builds(container, items, st.sampled_from((0x80, 0x90, 0xDC, 0xDD, 0xDE, 0xDF)))


VALUES = st.recursive(scalars(), containers, max_leaves=30)


@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(0, 6), st.integers(0, 200))
@example([container([(b"\xc0", [])] * 40, 0xDC)], 1, 41)
@example([container([(b"\xc0", [])] * 40, 0xDC)], 1, 40)
@example([container([(b"\x01", []), (b"\xcd\x91\x91", [])] * 40, 0xDD)], 1, 80)
def test_it_finds_what_a_recursive_walk_finds(written: list[Written], deepest: int, most: int) -> None:
    data = b"".join(value for value, _ in written)
    expected = model([shape for _, shape in written], deepest, most)
    assert _found(data, deepest, most) == expected


@given(VALUES, st.integers(0, 6), st.integers(0, 200), st.integers(0, 10_000))
def test_of_bytes_that_are_cut_off_it_finds_no_more(written: Written, deepest: int, most: int, cut: int) -> None:
    data, shape = written
    assert _found(data[: cut % (len(data) + 1)], deepest, most) in ("", model([shape], deepest, most))


@given(st.binary(max_size=300), st.integers(0, 6), st.integers(0, 40))
def test_it_ends_on_any_bytes_and_has_counted_what_a_decoder_makes(data: bytes, deepest: int, most: int) -> None:
    found = _found(data, deepest, most)
    assert found in ("", DEEP, MANY)
    try:
        value = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError):
        return
    if not found:  # equal keys of a mapping make one
        assert model([shape_of(value)], deepest, most) == ""


@pytest.mark.parametrize("item", [[], {}, 0, -1, True, None, ""])
def test_values_of_one_byte_take_no_step_each(item: Any) -> None:
    data = encode(ModuleInfo("acme.Costly", metadata={"x": [item] * (MAX_RECORD_VALUES - 1)}))
    assert lines_run(lambda: _found(data, DEEPEST, MOST_VALUES)) < 500


def shape_of(value: Any) -> Shape:
    if isinstance(value, dict):
        return [shape_of(part) for item in value.items() for part in item]
    return [shape_of(item) for item in value] if isinstance(value, list) else []


# The bounds themselves

ITEMS: dict[str, Callable[[int], Any]] = {
    "empty lists": lambda number: [],
    "empty mappings": lambda number: {},
    "numbers": lambda number: number % 100,
    "numbers of every length": lambda number: 7 ** (number % 20),
    "texts": lambda number: "x" * (number % 50),
    "in turn": lambda number: 300 if number % 2 else None,
}


@pytest.mark.parametrize("kind", ITEMS)
def test_a_record_of_as_many_values_as_are_allowed_passes_and_a_message_of_more_does_not(kind: str) -> None:
    def record(count: int) -> bytes:
        return encode(ModuleInfo("acme.Full", metadata={"x": [ITEMS[kind](number) for number in range(count)]}))

    assert excess(record(MAX_RECORD_VALUES - 1)) == ""
    assert excess(record(MOST_VALUES)) == MANY
    assert excess(record(20 * MOST_VALUES)) == MANY


@pytest.mark.parametrize(
    "head", [b"\x91", b"\x81\xc0", b"\xdc\0\1", b"\xdd\0\0\0\1", b"\xde\0\1\xc0", b"\xdf\0\0\0\1\xc0"]
)
def test_depth_has_its_bound_in_every_form(head: bytes) -> None:
    many = b"\xdc" + struct.pack(">H", 5000) + b"\x90" * 5000  # so many that counting bytes does not settle it
    assert excess(b"\x92" + many + head * (DEEPEST - 1) + b"\xc0") == ""
    assert excess(b"\x92" + many + head * DEEPEST + b"\xc0") == DEEP
    assert excess(many + head * 50_000) == DEEP
