"""How stored values become bytes, and the checksum at the end of each value.

The last four bytes of a value are the CRC-32 of all bytes before them, little-endian. The CRC-32 of a whole intact
value is then always the same constant, so a check slices and copies nothing. In a record the four bytes are the content
of a msgpack `bin 8`, the last element of its array, so a decoder reads the whole value without slicing:

    record = [ [module fields…], [provenance fields…], <crc> ]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.records import CLIENT, ModuleInfo, Provenance, StoredModule

try:
    import isal.isal_zlib as _zlib  # the same functions as zlib's, in a fraction of the time
except ImportError:  # no wheel for this processor
    import zlib as _zlib  # type: ignore[no-redef]

Buffer = bytes | bytearray | memoryview

crc32: Callable[[Buffer], int] = _zlib.crc32

INTACT: Final = 0x2144DF1C  # CRC-32 of any message followed by its own little-endian CRC-32
CHECKSUM_BYTES: Final = 4

_ARRAY_OF_3: Final = b"\x93"
_ARRAY_OF_4: Final = b"\x94"
_BIN_OF_4: Final = b"\xc4\x04"
_CLIENTS: Final = b"\xa6client"


class InfoEnvelope(msgspec.Struct, array_like=True, gc=False):
    """A record when only its module is needed: msgspec skips the rest without building it."""

    info: ModuleInfo


# Sorted keys: records equal in value are equal in bytes, and True is not taken for 1.
_encoder = msgspec.msgpack.Encoder(order="deterministic")
encode: Callable[[Any], bytes] = _encoder.encode
decode_info = msgspec.msgpack.Decoder(InfoEnvelope).decode
_decode_stored = msgspec.msgpack.Decoder(StoredModule).decode


def seal(payload: Buffer) -> bytes:
    """The payload followed by its checksum."""
    return bytes(payload) + crc32(payload).to_bytes(CHECKSUM_BYTES, "little")


def unseal(value: Buffer, what: str) -> Buffer:
    """The payload of a sealed value. Raises CorruptRecordError naming `what`."""
    if crc32(value) != INTACT:
        raise CorruptRecordError(f"{what}: stored bytes do not match their checksum.")
    return value[:-CHECKSUM_BYTES]


def seal_record(encoded_info: bytes, provenance: Provenance) -> bytes:
    """A record's bytes, from `encode(info)` and its provenance."""
    kept = encode(provenance)
    if provenance.source == CLIENT:  # the default: large registries have hardly any other source
        kept = _ARRAY_OF_4 + kept[1 : -len(_CLIENTS)]
    return seal(b"%b%b%b%b" % (_ARRAY_OF_3, encoded_info, kept, _BIN_OF_4))


def open_record(value: Buffer, name: str) -> StoredModule:
    """The record in full. Raises CorruptRecordError."""
    if crc32(value) != INTACT:
        raise corrupt(name)
    try:
        return _decode_stored(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise corrupt(name, error) from error


def corrupt(name: str, reason: Exception | None = None) -> CorruptRecordError:
    """The error for a record whose bytes are damaged."""
    why = f"cannot be decoded ({reason})" if reason else "does not match its checksum"
    return CorruptRecordError(f"the record of {name} {why}.")


class Sealed:
    """Encoder and decoder of one sealed msgpack type."""

    __slots__ = ("_decode", "_what")

    def __init__(self, kind: Any, what: str) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._what = what

    def dump(self, value: Any) -> bytes:
        """Sealed bytes of a value."""
        return seal(encode(value))

    def load(self, value: Buffer) -> Any:
        """The value. Raises CorruptRecordError."""
        try:
            return self._decode(unseal(value, self._what))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CorruptRecordError(f"{self._what}: cannot be decoded ({error}).") from error
