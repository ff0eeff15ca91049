"""Cutting a stream of bytes into frames: the length of a payload in 4 bytes, big-endian, and the payload."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from dspy_registry.registry_store.errors import ProtocolError

HEADER_BYTES: Final = 4


class FrameReader:
    """Cuts a stream of bytes into payloads of at most `limit` bytes. Keeps incomplete ones and those not taken yet."""

    __slots__ = ("_held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = bytearray()

    @property
    def is_inside(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._held)

    def feed(self, data: bytes) -> Generator[bytes, None, None]:
        """The payloads that `data` completes. Those that the caller does not take are kept for a later call.

        Raises ProtocolError for a frame that is too long, as soon as its header is there.
        """
        if not self._held and len(data) >= HEADER_BYTES and self._length(data) == len(data) - HEADER_BYTES:
            yield data[HEADER_BYTES:]  # the usual case: exactly one whole frame
            return
        self._held += data
        start = 0
        try:
            while len(self._held) - start >= HEADER_BYTES:
                end = start + HEADER_BYTES + self._length(self._held[start : start + HEADER_BYTES])
                if end > len(self._held):
                    break
                with memoryview(self._held) as held:  # a slice of the bytes would be one more copy of them
                    payload = bytes(held[start + HEADER_BYTES : end])
                start = end
                yield payload
        finally:
            del self._held[:start]

    def _length(self, data: bytes | bytearray) -> int:
        """The payload length of the frame that begins here. Its header must be complete."""
        length = int.from_bytes(data[:HEADER_BYTES], "big")
        if length > self.limit:
            raise ProtocolError(f"a frame of {length} bytes is longer than the {self.limit} allowed.")
        return length
