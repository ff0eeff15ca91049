"""Programs sent to the daemon, by clients of both kinds and by peers that break the rules."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import AsyncWriterClient, InvalidProgramError, ProtocolError, Registry
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.program_document import MAX_PROGRAM_BYTES
from dspy_registry.registry_store.program_rows import PIECE_BYTES, cut
from dspy_registry.registry_store.protocol import Part, Publish, Versioned
from dspy_registry.writer.programs import Publication
from tests.support.compiled_programs import NAME, plain_document, publication
from tests.support.daemon_process import Served, daemon, refused, unimpressed

DOCUMENT = plain_document("sent", PIECE_BYTES * 5)


@pytest.fixture
def served(registry_folder: Path) -> Iterator[Served]:
    with daemon(registry_folder) as running:
        yield running


def test_both_clients_publish_in_pieces_and_tell_the_version(served: Served) -> None:
    with served.client() as client:
        first = client.publish_program(publication(DOCUMENT, label="live"), DOCUMENT)

    async def again() -> int:
        async with AsyncWriterClient(served.path) as other:
            candidate = plain_document("candidate", PIECE_BYTES)
            return (await other.publish_program(publication(candidate, label="candidate"), candidate)).version

    second = asyncio.run(again())
    assert (first.version, second) == (1, 2)
    with Registry(served.path) as registry:
        assert registry.resolve(f"{NAME}@live").version == first.version
        assert registry.resolve(f"{NAME}@candidate").version == second
        assert registry.revision == first.revision + 1


def test_a_publication_that_comes_twice_takes_effect_once(served: Served) -> None:
    message = Publish(1, 1, len(cut(DOCUMENT)), encode(publication(DOCUMENT)))
    with served.peer() as peer:
        for _ in range(2):
            peer.send(*(Part([piece]) for piece in cut(DOCUMENT)), message)
            answer = peer.receive()
            assert isinstance(answer, Versioned)
            assert answer.version == 1


def test_pieces_that_are_missing_close_the_connection(served: Served) -> None:
    with unimpressed(served), served.peer() as peer:
        peer.send(Publish(1, 1, 3, encode(publication(DOCUMENT))))
        assert isinstance(refused(peer.receive()), ProtocolError)
        assert peer.receive() is None


def test_what_breaks_the_rules_is_refused_and_changes_nothing(served: Served) -> None:
    other = encode(Publication(NAME, b"x" * 32))
    with unimpressed(served), served.peer() as peer:
        assert isinstance(refused(peer.ask(Publish(2, 2, 0, b"nonsense"))[0]), ProtocolError)
        assert isinstance(refused(peer.ask(Publish(3, 3, 0, other))[0]), InvalidProgramError)
        large = [b"x" * PIECE_BYTES] * (MAX_PROGRAM_BYTES // PIECE_BYTES + 1)
        peer.send(*(Part([piece]) for piece in large), Publish(4, 4, len(large), other))
        assert isinstance(refused(peer.receive()), InvalidProgramError)
