"""How stored values become bytes, and the checksum at the end of each value.

The last four bytes of a value are a CRC-32, little-endian:

    format 1    of the bytes before it
    format 2    of the database's name, a zero byte, the key, and the bytes before it

So in format 2 a value verifies only under its own key. The CRC-32 of all that, the four bytes included, is one
constant. A CRC-32 can be continued from that of an earlier part. So verifying slices and copies nothing.

Records are sealed over themselves in both formats. They hold their name and version, which are compared with the key
after decoding: that costs a first read less than the key's checksum. In a record the four bytes are the content of a
msgpack `bin 8`, the last element of its array, so that a decoder reads the value as it stands:

    record = [ [module fields…], [provenance fields…], <crc> ]
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.records import ModuleInfo, Provenance, StoredModule, stored_fields

try:
    import isal.isal_zlib as _zlib  # the same functions as zlib's, in a fraction of the time
except ImportError:  # no wheel for this processor
    import zlib as _zlib  # type: ignore[no-redef]

Buffer = bytes | bytearray | memoryview

crc32: Callable[..., int] = _zlib.crc32  # of bytes, continued from the CRC-32 of those before them (0: none)

INTACT: Final = 0x2144DF1C  # CRC-32 of any message followed by its own little-endian CRC-32
CHECKSUM_BYTES: Final = 4

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError)
"""What a decoder raises for bytes that are intact and not what they must be."""

_ARRAY_OF_3: Final = b"\x93"
_BIN_OF_4: Final = b"\xc4\x04"


class InfoEnvelope(msgspec.Struct, array_like=True, gc=False):
    """A record when only its module is needed: msgspec skips the rest without building it."""

    info: ModuleInfo


# Sorted keys: records equal in value are equal in bytes, and True is not taken for 1.
_encoder = msgspec.msgpack.Encoder(order="deterministic")
encode: Callable[[Any], bytes] = _encoder.encode
decode_info = msgspec.msgpack.Decoder(InfoEnvelope).decode
_decode_stored = msgspec.msgpack.Decoder(StoredModule).decode


# Sealing


def database_seal(database: bytes) -> int:
    """What the seals of a database's values in format 2 are continued from, before the key."""
    return crc32(database + b"\0")


def key_seal(database: int, key: Buffer, format: int) -> int:
    """What the seal of one value is continued from. `database` is its `database_seal`."""
    return crc32(key, database) if format > 1 else 0


def seal(payload: Buffer, after: int = 0) -> bytes:
    """The payload followed by its checksum, continued from `after`: a `key_seal`; 0: sealed over itself alone."""
    return bytes(payload) + crc32(payload, after).to_bytes(CHECKSUM_BYTES, "little")


def unseal(value: Buffer, what: str, after: int = 0) -> Buffer:
    """The payload of a sealed value. `after` is as for `seal`. Raises CorruptRecordError naming `what`."""
    if crc32(value, after) != INTACT:
        raise CorruptRecordError(f"{what}: stored bytes do not match their checksum.")
    return value[:-CHECKSUM_BYTES]


def key_text(key: bytes) -> str:
    """A key as text. Raises CorruptRecordError where it is none: it was stored by nobody."""
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise CorruptRecordError(f"a key cannot be decoded ({error}).") from error


_making: Final = threading.RLock()
"""Held while a decoder is made. msgspec shows other threads the fields of a struct before it has them all, and a
decoder made of those ends the process by SIGSEGV. So no thread may fork meanwhile either."""
os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release)


class SealedAlone:
    """Encoder and decoder of one msgpack type that is sealed over itself: for files, where there are no keys.

    The decoder is made for the first value: most processes read few of the types, and making one takes 0.1 to 0.3 ms.
    """

    __slots__ = ("_decode", "_kind", "_what")

    def __init__(self, kind: Any, what: str) -> None:
        self._decode: Callable[[Buffer], Any] | None = None
        self._kind = kind
        self._what = what

    def dump(self, value: Any) -> bytes:
        """Sealed bytes of a value."""
        return seal(encode(value))

    def load(self, value: Buffer) -> Any:
        """The value. Raises CorruptRecordError."""
        return self._decoded(unseal(value, self._what))

    def _decoded(self, payload: Buffer) -> Any:
        decode = self._decode
        if decode is None:
            with _making:
                decode = self._decode = msgspec.msgpack.Decoder(self._kind).decode
        try:
            return decode(payload)
        except UNDECODABLE as error:
            raise CorruptRecordError(f"{self._what}: cannot be decoded ({error}).") from error


class Sealed:
    """Encoder and decoder of one msgpack type whose values stand in a database.

    `shortened` gives what format 1 has of a value, where that is less than the value. None: the value itself.
    """

    __slots__ = ("_database", "_decoded", "_shortened", "_what")

    def __init__(self, kind: Any, what: str, database: bytes, shortened: Callable[[Any], Any] | None = None) -> None:
        self._decoded = SealedAlone(kind, what)._decoded
        self._what = what
        self._database = database_seal(database)
        self._shortened = shortened

    def dump(self, value: Any, key: Buffer, format: int) -> bytes:
        """Bytes of a value that are sealed for this key, in this format."""
        if format > 1:
            return self.sealed(encode(value), key)
        return seal(encode(value if self._shortened is None else self._shortened(value)))

    def sealed(self, encoded: bytes, key: Buffer) -> bytes:
        """What `dump` makes in format 2, from `encode(value)`."""
        return seal(encoded, crc32(key, self._database))

    def load(self, value: Buffer | None, key: Buffer, format: int) -> Any:
        """The value stored under this key. Raises CorruptRecordError, for another key's value too.

        None is a value that is missing, which is an error too.
        """
        if value is None:
            raise CorruptRecordError(f"{self._what}: is missing.")
        return self._decoded(unseal(value, self._what, key_seal(self._database, key, format)))


# Records


def seal_record(encoded_info: bytes, provenance: Provenance, format: int) -> bytes:
    """A record's bytes, from `encode(info)` and what the registry keeps of it."""
    kept = encode(stored_fields(provenance, format))
    return seal(b"%b%b%b%b" % (_ARRAY_OF_3, encoded_info, kept, _BIN_OF_4))


def open_record(value: Buffer, name: str) -> StoredModule:
    """The record in full of the module `name`. Raises CorruptRecordError, for another module's record too."""
    stored = decode_record(value, name)
    if stored.info.name != name:
        raise misplaced(name, stored.info.name)
    return stored


def decode_record(value: Buffer, what: str) -> StoredModule:
    """The record in full, of whichever module. Raises CorruptRecordError naming `what`."""
    if crc32(value) != INTACT:
        raise corrupt(what)
    try:
        return _decode_stored(value)
    except UNDECODABLE as error:
        raise corrupt(what, error) from error


def corrupt(name: str, reason: Exception | None = None) -> CorruptRecordError:
    """The error for a record whose bytes are damaged."""
    why = f"cannot be decoded ({reason})" if reason else "does not match its checksum"
    return CorruptRecordError(f"the record of {name} {why}.")


def misplaced(name: str, found: str) -> CorruptRecordError:
    """The error for a record that stands under the name of another module."""
    return CorruptRecordError(f"under {name} stands the record of {found}.")
