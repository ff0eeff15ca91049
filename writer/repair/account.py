"""What a repair took from elsewhere, and what is lost: the account that its user reads."""

from __future__ import annotations

from typing import Any

import msgspec


class Taken(msgspec.Struct, frozen=True):
    """A row that the newest state does not have. `where` is its database and key, `origin` what it was taken from."""

    where: str
    origin: str


class Lost(msgspec.Struct, frozen=True):
    """Something that could not be recovered, and the reason."""

    where: str
    reason: str


class Repaired(msgspec.Struct, frozen=True):
    """What a repair did. `path` is the new registry's folder.

    `modules` and `revision` are those of the new registry. `kept` is how many rows of each database it has. `damage` is
    what was found wrong with pages of the old one. `taken` and `lost` name all that is not as it was.
    """

    path: str
    revision: int
    modules: int
    kept: dict[str, int]
    damage: tuple[str, ...]
    taken: tuple[Taken, ...]
    lost: tuple[Lost, ...]


class Account:
    """Gathers what is taken and lost while a registry is rebuilt."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}
        self._lost: dict[str, str] = {}

    def took(self, database: bytes, key: Any, origin: str) -> None:
        """Remember where something came from."""
        self._taken[where(database, key)] = origin

    def lose(self, database: bytes, key: Any, reason: str) -> None:
        """Remember what is lost. The first reason counts."""
        self._lost.setdefault(where(database, key), reason)

    def kept(self, database: bytes, key: Any) -> None:
        """Something that seemed lost is kept after all."""
        self._lost.pop(where(database, key), None)

    @property
    def taken(self) -> tuple[Taken, ...]:
        """All that was taken from elsewhere, by place."""
        return tuple(Taken(*item) for item in sorted(self._taken.items()))

    @property
    def lost(self) -> tuple[Lost, ...]:
        """All that is lost, by place."""
        return tuple(Lost(*item) for item in sorted(self._lost.items()))


def where(database: bytes, key: Any) -> str:
    """A place for people: database and key. The version at the end of a key of `history` or `usage` is a number."""
    if isinstance(key, tuple):
        return f"{database.decode()}/{'/'.join(map(str, key))}"
    text = key if isinstance(key, str) else key.decode("utf-8", "backslashreplace").replace("\0", "/")
    return f"{database.decode()}/{text}" if text else database.decode()
