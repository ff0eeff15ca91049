"""Puts the probe's reports together from the pieces that it sends in turn over one socket. Trusts none of them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

_HEADER: Final = re.compile(rb"(run|[0-9]{1,9}\.[0-9]{1,4}) ([0-9]{1,5})\n")
_LONGEST_HEADER: Final = 24


class Reports:
    """The reports by name, as far as they have come: `run`, and `<root>.<attempt>`.

    The reports of one root keep `most` bytes together. Those that were longer are `cut`.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting = bytearray()
        self._found: dict[str, bytearray] = {}
        self._kept: Counter[str] = Counter()  # bytes by root
        self._is_garbled = False
        self.cut: set[str] = set()

    def take(self, data: bytes) -> None:
        """Take in what has come. What is no piece ends it: nothing after it is understood."""
        if not self._is_garbled:
            self._waiting += data
            while self._take_piece():
                pass

    def report(self, name: str) -> bytes | None:
        """What is kept of a report. None: it was never begun."""
        found = self._found.get(name)
        return None if found is None else bytes(found)

    def _take_piece(self) -> bool:
        header = _HEADER.match(bytes(self._waiting[:_LONGEST_HEADER]))
        if header is None:
            self._is_garbled = len(self._waiting) >= _LONGEST_HEADER
            return False
        begin, end = header.end(), header.end() + int(header[2])
        if end > len(self._waiting):
            return False
        self._keep(header[1].decode(), bytes(self._waiting[begin:end]))
        del self._waiting[:end]
        return True

    def _keep(self, name: str, piece: bytes) -> None:
        root = name.partition(".")[0]
        kept = piece[: self._most - self._kept[root]]
        self._found.setdefault(name, bytearray()).extend(kept)
        self._kept[root] += len(kept)
        if len(kept) < len(piece):
            self.cut.add(name)
