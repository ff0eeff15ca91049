"""The document of a compiled program: where its code is, what its predictors look like, and its state. Plain JSON.

A document is what is hashed, stored and loaded. Two publications with equal documents share one stored state.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final, Literal, TypeVar

import msgspec

from dspy_registry.registry_store.errors import CorruptRecordError, InvalidProgramError

MAX_PROGRAM_BYTES: Final = 16 * 1024 * 1024
"""Of a document. A registry keeps up to 17 states of a module, and one for each further label."""

MAX_DEPTH: Final = 64
"""How deep a state may nest. A decoder recurses once for each level."""

Role = Literal["input", "output"]

T = TypeVar("T")


class FieldShape(msgspec.Struct, frozen=True):
    """A field of a predictor's signature. `type` is the text of its annotation, the same in every process."""

    name: str
    role: Role
    type: str


class PredictorShape(msgspec.Struct, frozen=True):
    """A predictor: its path in the program, its class, and the fields of its signature in order."""

    name: str
    kind: str
    fields: tuple[FieldShape, ...] = ()


class ProgramForm(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled program without its state.

    `class_path` is the class of the program, `origin` what a worker imports and builds it from: both are
    `package.module:Name`. `dspy_version` wrote the state. `predictors` are in the order of the state.
    """

    class_path: str
    origin: str
    dspy_version: str
    predictors: tuple[PredictorShape, ...]

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the predictors, in hexadecimal: equal where a state fits as it is."""
        return sha256(_encoder.encode(self.predictors)).hexdigest()


class WholeProgram(ProgramForm, frozen=True, kw_only=True):
    """A compiled program with its state decoded: what DSPy's `dump_state` gives."""

    state: dict[str, Any]


class ProgramDocument(ProgramForm, frozen=True, kw_only=True):
    """A compiled program. `state` is what DSPy's `dump_state` gives, as JSON."""

    state: msgspec.Raw

    def load_state(self) -> dict[str, Any]:
        """The state, decoded; a new dict. Raises CorruptRecordError."""
        try:
            return _decode_state(self.state)
        except _UNREADABLE as error:
            raise CorruptRecordError(f"the state of a program cannot be decoded ({error}).") from error

    def whole(self) -> WholeProgram:
        """It with its state decoded. Raises CorruptRecordError."""
        form = {field: getattr(self, field) for field in ProgramForm.__struct_fields__}
        return WholeProgram(**form, state=self.load_state())


_encoder = msgspec.json.Encoder(order="deterministic")
_decode = msgspec.json.Decoder(ProgramDocument).decode
_decode_whole = msgspec.json.Decoder(WholeProgram).decode
_decode_state = msgspec.json.Decoder(dict[str, Any]).decode
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode_json(value: Any) -> bytes:
    """Canonical JSON: equal values have equal bytes."""
    return _encoder.encode(value)


def encode_document(document: ProgramDocument) -> bytes:
    """The bytes of a document. Raises InvalidProgramError when it is too large."""
    encoded = encode_json(document)
    refuse_size(document.class_path, len(encoded))
    return encoded


def refuse_size(subject: str, size: int) -> None:
    """Raises InvalidProgramError for a document of more bytes than are allowed."""
    if size > MAX_PROGRAM_BYTES:
        raise InvalidProgramError(subject, (f"it has {size:,} bytes, and {MAX_PROGRAM_BYTES:,} are the most",))


def decode_document(encoded: bytes) -> ProgramDocument:
    """The document in these bytes. Raises CorruptRecordError."""
    return _decoded(_decode, encoded)


def decode_whole(encoded: bytes) -> WholeProgram:
    """The document in these bytes and its state, in one pass over them. Raises CorruptRecordError."""
    return _decoded(_decode_whole, encoded)


def _decoded(decode: Callable[[bytes], T], encoded: bytes) -> T:
    try:
        return decode(encoded)
    except _UNREADABLE as error:
        raise CorruptRecordError(f"a program cannot be decoded ({error}).") from error


def digest_of(encoded: bytes) -> bytes:
    """The SHA-256 that a document is stored under: 32 bytes."""
    return sha256(encoded).digest()
