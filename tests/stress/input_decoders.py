"""All that decodes bytes from outside or from a disk, with sound samples and the errors that it may raise."""

from __future__ import annotations

import inspect
import json
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import yaml

from dspy_registry import ModuleInfo, RegistryError
from dspy_registry.registry_store import changes, layers, order, postings, protocol, reports, usage_rows, wire_errors
from dspy_registry.registry_store.codec import encode, open_record, seal_record
from dspy_registry.registry_store.records import Provenance, from_plain
from dspy_registry.registry_store.validation import validate_module
from dspy_registry.writer.daemon.requests import decode_module, decode_report
from dspy_registry.writer.manifests.parse import load
from tests.support.usage_helpers import NOW, Pending


class Decoder(NamedTuple):
    """`read` takes what `samples` are like, changed at random. `is_sealed`: with a checksum that is right again."""

    name: str
    samples: Sequence[bytes]
    read: Callable[[bytes], Any]
    allowed: tuple[type[BaseException], ...] = (RegistryError,)
    is_sealed: bool = False


_MODULE = ModuleInfo("acme.m", capabilities=("a", "b"), examples=("x",), metadata={"a": [1, {"b": None}], "c": 1.5})
_ENCODED = encode(_MODULE)
_pack = msgspec.msgpack.encode

_REQUESTS = (
    protocol.Register(1, 1, _ENCODED, 3, (1, 2)),
    protocol.Part([_ENCODED, _ENCODED]),
    protocol.RegisterMany(1, 1, 2),
    protocol.Unregister(1, 1, "dspy.none"),
    protocol.SetAlias(1, 1, "alias", "dspy.Predict"),
    protocol.RemoveAlias(1, 1, "alias"),
    protocol.SetImplications(1, 1, {"a": ("b", "c")}),
    protocol.ApplyDiscovery(1, 1, 0, _pack({"modules": [], "probed": ["acme"]})),
    protocol.ReadStatus(1),
    protocol.ReportUsage(1, b"\x92\x01\x80"),
)
REQUESTS = tuple(protocol.frame(request)[protocol.HEADER_BYTES :] for request in _REQUESTS)
_ANSWERS = tuple(
    protocol.frame(answer)[protocol.HEADER_BYTES :]
    for answer in (
        protocol.Done(1, 7),
        protocol.Failed(1, "ConflictError", ("acme.m", 1, 2), "remedy"),
        protocol.Applied(1, 7, ("a",), ("b",), ("c",)),
        protocol.BatchProgress(1, 5, 10),
        protocol.Status(1, protocol.DaemonStatus(1, 2, 3.0, 4, 5, 6, 7, {"a": {"b": 1}})),
    )
)


def _batches() -> tuple[bytes, ...]:
    pending = Pending()
    for duration in (1.0, 5.5, 900.0):
        pending.add(("acme.m", duration, True, 500, 10, 20, 0.5), NOW)
    return tuple(payload for _, payload in pending.take(bytes(16), 1))


def _frames(data: bytes) -> None:
    reader = protocol.FrameReader(1 << 16)
    for at in range(0, len(data), 7):
        for payload in reader.feed(data[at : at + 7]):
            assert len(payload) <= 1 << 16
    assert len(reader._held) <= (1 << 16) + 4


def _failed(data: bytes) -> None:
    answer = protocol.read_answer(data)
    if isinstance(answer, protocol.Failed):
        error = wire_errors.unpack(answer)
        assert isinstance(error, RegistryError)
        str(error)


def _fields(data: bytes) -> None:
    """Values of any type as the fields of a module: named, or stored so that they are read back equal."""
    try:
        plain = msgspec.json.decode(data)
        info = from_plain(plain)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError, ValueError):
        return
    sound = validate_module(info)
    assert open_record(seal_record(encode(sound), Provenance(1, 1, 1, 1)), "x").info == sound


def _manifest(suffix: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        found = load("m" + suffix, data, suffix)
        for error in found.errors:
            assert not error.message.startswith("cannot be read: "), error.message

    return read


def as_stored(read: Callable[..., Any]) -> Callable[[bytes], Any]:
    """A decoder of stored values. One that also takes a key and a format gets some."""
    return (lambda data: read(data, b"key", 1)) if len(inspect.signature(read).parameters) > 1 else read


_PLAIN = {
    "modules": [{"name": "acme.m", "category": "c", "capabilities": ["a"], "requirements": {"memory": "low"}}],
    "aliases": {"x": "acme.m"},
    "implications": {"a": ["b"]},
    "defaults": [{"pattern": "acme.*", "category": "d"}],
}
_TOML = b"""
[[modules]]
name = "acme.m"
category = "c"
capabilities = ["a", "b"]
metadata = { a = 1, b = [1, 2.5, true] }
[modules.requirements]
memory = "low"
[aliases]
x = "acme.m"
[implications]
a = ["b"]
"""
_JSON = json.dumps(_PLAIN).encode()
_YAML = yaml.safe_dump(_PLAIN).encode() + b"# comment\nanchors: &a {b: 1}\nmerged: {<<: *a}\n"


def _payload(*values: Any) -> tuple[bytes, ...]:
    return tuple(map(encode, values))


_UNREADABLE = (*protocol.UNREADABLE,)

DECODERS: tuple[Decoder, ...] = (
    Decoder("requests", REQUESTS, protocol.decode_request, _UNREADABLE),
    Decoder("greetings", _payload(protocol.Hello(protocol.VERSION, bytes(16))), protocol.decode_hello, _UNREADABLE),
    Decoder("welcomes", (_pack([0, 1, 7]), *_ANSWERS), protocol.read_welcome),
    Decoder("answers", _ANSWERS, protocol.read_answer),
    Decoder("errors of the daemon", _ANSWERS, _failed),
    Decoder("frames", (b"".join(len(r).to_bytes(4, "big") + r for r in REQUESTS),), _frames),
    Decoder("modules", (_ENCODED,), decode_module),
    Decoder("reports", (_pack({"modules": [], "probed": ["acme"]}),), lambda data: decode_report(data, [])),
    Decoder("batches of usage", _batches(), reports.read_batch),
    Decoder("fields", (json.dumps(msgspec.to_builtins(_MODULE, str_keys=True)).encode(), _JSON), _fields),
    Decoder("manifests in TOML", (_TOML,), _manifest(".toml"), ()),
    Decoder("manifests in JSON", (_JSON,), _manifest(".json"), ()),
    Decoder("manifests in YAML", (_YAML,), _manifest(".yaml"), ()),
    Decoder(
        "records",
        (seal_record(_ENCODED, Provenance(1, 2, 3, 4), 1)[:-4],),
        lambda data: open_record(data, "acme.m"),
        is_sealed=True,
    ),
    Decoder(
        "changes",
        _payload(changes.Change(7, 8, (changes.ModuleChange("a.B", "updated", 2),), ("a.B", "b"), ("all:",))),
        as_stored(changes.change_codec.load),
        is_sealed=True,
    ),
    Decoder("states", _payload(changes.State(1, 2, 3)), as_stored(changes.state_codec.load), is_sealed=True),
    Decoder("aliases", _payload(changes.Alias("a.B", "client")), as_stored(changes.alias_codec.load), is_sealed=True),
    Decoder("vocabulary", _payload({"c": {"a": ("b",)}}), as_stored(changes.implications_codec.load), is_sealed=True),
    Decoder(
        "layers", _payload(layers.Layer("core", {"category": "x"})), as_stored(layers.layer_codec.load), is_sealed=True
    ),
    Decoder("rows of names", (b"a\0b\0\0c",), as_stored(order.load_row), is_sealed=True),
    Decoder(
        "postings",
        (postings.BitMap([1, 2, 3]).serialize(), postings.BitMap(range(0, 9000, 2)).serialize(), bytes(4)),
        as_stored(postings.load_block),
        is_sealed=True,
    ),
    Decoder("ledgers", _payload(usage_rows.Ledger(1, 2)), as_stored(usage_rows.ledger_codec.load), is_sealed=True),
)


def changed(sample: bytes, chance: random.Random) -> bytes:
    """Some bytes other than they were, or cut, doubled, inserted; sometimes noise from end to end."""
    data = bytearray(sample)
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(64))
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind < 3 and at < len(data):
            data[at] = chance.choice((chance.randrange(256), 0, 0xC1, 0xDF, 0xFF, 0x7F, data[at] ^ 1))
        elif kind == 3:
            data[at:at] = chance.choice((chance.randbytes(3), b"\xdd\xff\xff\xff\xff", b"\x91" * 50, b"[" * 200))
        elif kind == 4:
            del data[at : at + chance.randrange(8)]
        else:
            data[at:at] = data[: chance.randrange(16)]
    return bytes(data)


def sealed(payload: bytes) -> bytes:
    """With a checksum that is right, so that what is behind it is tried."""
    return payload + zlib.crc32(payload).to_bytes(4, "little")
