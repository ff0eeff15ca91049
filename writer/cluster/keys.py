"""The cluster's keys, all below one prefix.

d/head             the newest change: whose it is, and its number     watched
d/r/KIND/KEY       a global record                                    watched
d/h/HOST           a host that is alive; ends with its lease          watched
d/leader           the host that leads; ends with its lease           watched
d/c/NAME/VERSION/HOST  a circuit that a host has opened; ends with its lease   watched
d/b/HOST/ID        the marker of a large batch; see `batches`         watched
b/HOST/ID/NUMBER   its pieces
q/DIGEST           the head of a program; see `program_store`
p/DIGEST/NUMBER    its pieces
a/HOST/CLIENT      the last answers to a client; end with a lease
o/HOST             the last change of a host: whether it landed
"""

from __future__ import annotations

from typing import Final

import msgspec

from dspy_registry.registry_store.codec import SealedAlone

BATCHES: Final = b"batches"
"""The kind of record as which a large batch is set aside that this release cannot read."""

ROLLOUTS: Final = b"rollouts"
"""The kind of a guarded rollout."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The value of `d/head`. `change` names the change, `number` counts all of them, `at` is in ms since the epoch."""

    change: bytes
    number: int
    host: str
    at: int


class Presence(msgspec.Struct, frozen=True):
    """A host that is alive, as JSON. `applied` is the global revision that its readers see."""

    name: str
    release: str
    pid: int
    applied: int


head_codec = SealedAlone(Head, "the head of the cluster")
encode_presence = msgspec.json.Encoder().encode
decode_presence = msgspec.json.Decoder(Presence).decode


class Keys:
    """The keys of one registry in a cluster."""

    def __init__(self, prefix: str, host: str) -> None:
        root = prefix.encode()
        self.watched = root + b"d/"
        self.head = self.watched + b"head"
        self.records = self.watched + b"r/"
        self.host = host.encode()
        self.batches = self.watched + b"b/"
        self.pieces = root + b"b/"
        self.program_heads = root + b"q/"
        self.program_pieces = root + b"p/"
        self.hosts = self.watched + b"h/"
        self.circuits = self.watched + b"c/"
        self.leader = self.watched + b"leader"
        self.presence = self.hosts + host.encode()
        self.answers = root + b"a/" + host.encode() + b"/"
        self.last_change = root + b"o/" + host.encode()

    def record(self, kind: bytes, key: bytes) -> bytes:
        """The key of a global record."""
        return self.records + kind + b"/" + key

    def circuit(self, name: str, version: int, host: str | None = None) -> bytes:
        """The key of this host's circuit of a module version, or of another host's; "": what all of them begin with."""
        whose = self.host if host is None else host.encode()
        return self.circuits + name.encode() + b"/%d/" % version + whose

    def split_circuit(self, key: bytes) -> tuple[str, int, str]:
        """Name, version and host of a circuit's key. Raises ValueError when it is of another release."""
        name, version, host = key[len(self.circuits) :].decode().rsplit("/", 2)
        if not name or not host or not (version.isascii() and version.isdigit()):
            raise ValueError(f"{version!r} is no version")
        return name, int(version), host

    def program_head(self, digest: bytes) -> bytes:
        """The key of a program's head."""
        return self.program_heads + digest.hex().encode()

    def batch_of(self, key: bytes) -> bytes | None:
        """Host and id of the batch whose marker this key is. None: it is another key."""
        return key[len(self.batches) :] if key.startswith(self.batches) else None

    def split_record(self, key: bytes) -> tuple[bytes, bytes] | None:
        """Kind and key of a global record. None: it is another key."""
        if not key.startswith(self.records):
            return None
        kind, _, rest = key[len(self.records) :].partition(b"/")
        return kind, rest
