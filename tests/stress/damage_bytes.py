"""Damage to the bytes of a registry's files: flips, zeroed, exchanged and repeated pages, truncations."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

PAGE = 4096
_DATA = "data.mdb"


def _flip(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at] ^= 1 << chance.randrange(8)


def _flip_in_meta(data: bytearray, chance: random.Random) -> None:
    """In what a meta page holds: magic, version, sizes, two trees, last page, transaction number."""
    at = chance.randrange(2) * PAGE + chance.randrange(152)
    data[at] ^= 1 << chance.randrange(8)


def _zero_page(data: bytearray, chance: random.Random) -> None:
    page = chance.randrange(len(data) // PAGE)
    data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)


def _zero_sector(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data) // 512) * 512
    data[at : at + 512] = bytes(512)


def _noise(data: bytearray, chance: random.Random) -> None:
    page = chance.randrange(len(data) // PAGE)
    data[page * PAGE : (page + 1) * PAGE] = chance.randbytes(PAGE)


def _exchange(data: bytearray, chance: random.Random) -> None:
    one, other = (page * PAGE for page in chance.sample(range(len(data) // PAGE), 2))
    data[one : one + PAGE], data[other : other + PAGE] = data[other : other + PAGE], data[one : one + PAGE]


def _repeat(data: bytearray, chance: random.Random) -> None:
    """Another page in the place of one, as in a copy that was made under a writer."""
    one, other = (page * PAGE for page in chance.sample(range(len(data) // PAGE), 2))
    data[one : one + PAGE] = data[other : other + PAGE]


def _cut(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((0, PAGE, 2 * PAGE, len(data) - PAGE, len(data) * 99 // 100, chance.randrange(len(data))))
    del data[size:]


Damage = Callable[[bytearray, random.Random], None]

PAGES: dict[str, Damage] = {
    "flip": _flip,
    "meta": _flip_in_meta,
    "zeroed page": _zero_page,
    "zeroed sector": _zero_sector,
    "noise": _noise,
    "exchanged pages": _exchange,
    "repeated page": _repeat,
    "cut": _cut,
}


def damage_data(folder: Path, kind: str, chance: random.Random) -> None:
    """Damage data.mdb."""
    _apply(folder / _DATA, PAGES[kind], chance)


def damage_other(folder: Path, name: str, chance: random.Random) -> None:
    """Damage, empty or remove another file of the folder."""
    path = folder / name
    kind = chance.choice(("flip", "zeroed page", "noise", "cut", "gone"))
    if kind == "gone" or not path.stat().st_size:
        path.unlink()
    else:
        small: Damage = _flip if path.stat().st_size < 2 * PAGE else PAGES[kind]
        _apply(path, small, chance)


def _apply(path: Path, damage: Damage, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    damage(data, chance)
    path.write_bytes(data)
