"""A client's publication of a program, whose pieces came as the parts of a batch do."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dspy_registry.registry_store.errors import ConflictError, InvalidModuleError, ProtocolError, RegistryError
from dspy_registry.registry_store.nesting import MANY, excess
from dspy_registry.registry_store.protocol import UNREADABLE, Publish, Versioned
from dspy_registry.writer.daemon.requests import ClientRequest, Reply
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.programs import Publication, has_taken_effect, publish

_decode = msgspec.msgpack.Decoder(Publication).decode


class PublicationRequest(ClientRequest):
    """A program to publish. Its answer tells the version."""

    def __init__(
        self, client: bytes, message: Publish, pieces: Sequence[bytes], reply: Reply, held_bytes: int = 0
    ) -> None:
        super().__init__(client, message, reply, held_bytes)
        self.repeats = message.repeats
        self._message = message
        self._pieces = pieces
        self._version = 0

    @property
    def publication(self) -> Publication:
        """What is to be published, not checked. Raises as `decode_publication`."""
        return decode_publication(self._message.publication)

    @property
    def expected_version(self) -> int | None:
        """The version that must be in force; 0: none; None: any."""
        return self._message.expected_version

    def stage(self, draft: Draft) -> None:
        """Stage the version and, where it is not stored yet, the document."""
        self._version = publish(draft, self.publication, self._pieces, self.expected_version)

    def stage_as_client(self, draft: Draft) -> None:
        """The same for a module that a cluster shares: a client declares it, and the version was compared before."""
        self._version = publish(draft, self.publication, self._pieces, is_clients=True)

    def is_in_force(self, draft: Draft, error: RegistryError) -> bool:
        """Whether the version after the expected one is what this asks for."""
        publication = self.publication
        if not isinstance(error, ConflictError) or not has_taken_effect(
            draft, publication, self._message.expected_version
        ):
            return False
        self._version = error.current_version
        return True

    def success(self, revision: int) -> Versioned:
        """The version that has the program."""
        return Versioned(self.id, revision, self._version)


def decode_publication(encoded: bytes) -> Publication:
    """A publication as a client sent it, not checked. Raises ProtocolError, InvalidModuleError for too many values."""
    found = excess(encoded)
    if found == MANY:
        raise InvalidModuleError("a module", ("record: too many values",))
    if found:
        raise ProtocolError(f"a publication {found} to be read.")
    try:
        return _decode(encoded)
    except UNREADABLE as error:
        raise ProtocolError(f"a publication is not understood: {error}.") from error
