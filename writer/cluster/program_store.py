"""Programs in the cluster: each document once, by its SHA-256, in pieces below etcd's limit of a request.

    q/DIGEST          the head: how large, in how many pieces, who puts them, and whether all are there
    p/DIGEST/NUMBER   a piece

The head is put first, then the pieces, then the head again, which says that it is whole. Each of these compares the
head's revision, so that no piece is put beside a head that is gone. The change that names the program compares the
whole head's revision. Nothing of this is watched: a host fetches what a version names.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

import msgspec

from dspy_registry.registry_store.codec import SealedAlone
from dspy_registry.registry_store.errors import BusyError, ClusterUnavailableError, CorruptRecordError
from dspy_registry.registry_store.program_document import MAX_PROGRAM_BYTES, digest_of
from dspy_registry.writer.cluster.engine import Engine, KeyValue
from dspy_registry.writer.cluster.keys import Keys

PIECE_BYTES: Final = 512 * 1024
_PUT_AT_ONCE: Final = 4
_PIECES_AT_ONCE: Final = 2
_UPLOAD_SECONDS: Final = 30.0
_OTHERS_SECONDS: Final = 5.0  # that the upload of another host is waited for, before it is taken over
_STEP_SECONDS: Final = 8.0  # that a piece is tried again, at a node that answers late or at another one
_PAUSE: Final = 0.1  # seconds


class ProgramHead(msgspec.Struct, frozen=True, array_like=True):
    """How many bytes and pieces a document has. `host` puts them, and has put them all once it `is_whole`."""

    size: int
    pieces: int
    host: str
    is_whole: bool = False


head_codec = SealedAlone(ProgramHead, "the head of a program of the cluster")


class ProgramStore:
    """Puts, fetches and collects programs. `living` gives the ids of hosts that are alive."""

    def __init__(self, engine: Engine, keys: Keys, living: Callable[[], Collection[str]] = tuple) -> None:
        self._engine = engine
        self._keys = keys
        self._living = living

    # Put

    async def put(self, digest: bytes, load: Callable[[], Awaitable[bytes]]) -> dict[bytes, int]:
        """Put a document, if it is not there; `load` gives it. Returns what a change that names it has to expect.

        Raises BusyError when other hosts take it away again and again, CorruptRecordError for a head of another
        release, ClusterUnavailableError.
        """
        key, until = self._keys.program_head(digest), time.monotonic() + _UPLOAD_SECONDS
        patience = time.monotonic() + _OTHERS_SECONDS
        document: bytes | None = None
        while time.monotonic() < until:
            found = await self._read(key)
            head = None if found is None else head_codec.load(found.value or b"")
            if found is not None and head is not None and head.is_whole:
                return {key: found.revision}
            if head is not None and self._is_of_another(head) and time.monotonic() < patience:
                await asyncio.sleep(_PAUSE)
                continue
            document = await load() if document is None else document
            revision = await self._put_all(key, digest, document, found.revision if found else 0)
            if revision:
                return {key: revision}
        raise BusyError("other hosts change the programs of the cluster so often that this upload found no turn.")

    def _is_of_another(self, head: ProgramHead) -> bool:
        host = self._keys.host.decode()
        return head.host != host and head.host in self._living()

    async def _put_all(self, key: bytes, digest: bytes, document: bytes, found: int) -> int:
        """The revision of the whole head; 0: somebody else has changed it meanwhile."""
        count = -(-len(document) // PIECE_BYTES)
        head = ProgramHead(len(document), count, self._keys.host.decode())
        revision = await self._step(key, found, key, head_codec.dump(head))
        for first in range(0, count, _PUT_AT_ONCE):
            numbers = range(first, min(first + _PUT_AT_ONCE, count))
            pieces = {number: document[number * PIECE_BYTES : (number + 1) * PIECE_BYTES] for number in numbers}
            if not revision or not await self._put_pieces(key, revision, digest, pieces):
                return 0
        whole = msgspec.structs.replace(head, is_whole=True)
        return await self._step(key, revision, key, head_codec.dump(whole)) if revision else 0

    async def _put_pieces(self, head: bytes, revision: int, digest: bytes, pieces: Mapping[int, bytes]) -> bool:
        steps = [self._step(head, revision, self._piece(digest, number), piece) for number, piece in pieces.items()]
        return all(await asyncio.gather(*steps))

    async def _step(self, head: bytes, expected: int, key: bytes, value: bytes) -> int:
        """The revision that put it; 0: the head was changed. Whether a lost reply stood for that, the head tells."""
        until = time.monotonic() + _STEP_SECONDS
        while True:
            try:
                outcome = await self._engine.transact({head: expected}, {key: value})
                return outcome.revision if outcome.succeeded else 0
            except ClusterUnavailableError as error:
                if time.monotonic() > until:
                    raise ClusterUnavailableError(f"{error.message} Nothing was changed.") from error
            await asyncio.sleep(_PAUSE)

    # Fetch

    async def fetch(self, digest: bytes, revision: int = 0) -> bytes | None:
        """The document as of a revision; 0: the newest. None: it is not there as it was published.

        Raises CompactedError, ClusterUnavailableError.
        """
        found = await self._read(self._keys.program_head(digest), revision)
        try:
            head = None if found is None else head_codec.load(found.value or b"")
        except CorruptRecordError:
            return None
        if head is None or not head.is_whole or head.size > MAX_PROGRAM_BYTES:
            return None
        document = b"".join(await self._pieces(digest, head.pieces, revision))
        is_right = len(document) == head.size and digest_of(document) == digest
        return document if is_right else None

    async def _pieces(self, digest: bytes, count: int, revision: int) -> list[bytes]:
        prefix, after, size = self._keys.program_pieces + digest.hex().encode() + b"/", b"", 0
        pieces: list[bytes] = []
        while len(pieces) < count and size <= MAX_PROGRAM_BYTES:
            page = await self._engine.range_at(prefix, after, revision, limit=_PIECES_AT_ONCE)
            if not page.items:
                break
            pieces += [item.value or b"" for item in page.items]
            size += sum(len(item.value or b"") for item in page.items)
            after = page.items[-1].key
        return pieces

    async def _read(self, key: bytes, revision: int = 0) -> KeyValue | None:
        page = await self._engine.range_at(key, revision=revision, limit=1)
        return page.items[0] if page.items else None

    def _piece(self, digest: bytes, number: int) -> bytes:
        return self._keys.program_pieces + digest.hex().encode() + b"/%06d" % number

    # Collect

    async def heads(self) -> dict[bytes, tuple[int, ProgramHead | None]]:
        """(revision, head) of each program that is there, by digest; None: a head of another release."""
        found: dict[bytes, tuple[int, ProgramHead | None]] = {}
        after, more = b"", True
        while more:
            page = await self._engine.range_at(self._keys.program_heads, after)
            more = page.more
            for item in page.items:
                after = item.key
                digest = _digest(item.key[len(self._keys.program_heads) :])
                if digest:
                    found[digest] = (item.revision, _head(item.value or b""))
        return found

    async def remove(self, digest: bytes, expected: dict[bytes, int]) -> bool:
        """Remove a program, if nothing has changed since. False: something has."""
        key = self._keys.program_head(digest)
        pieces = self._keys.program_pieces + digest.hex().encode() + b"/"
        return (await self._engine.transact(expected, {}, removed=(key, pieces))).succeeded

    def may_be_removed(self, head: ProgramHead | None) -> bool:
        """Whether a program that no version names may go: it is readable, and no other host puts it just now."""
        return head is not None and (head.is_whole or not self._is_of_another(head))


def _head(value: bytes) -> ProgramHead | None:
    try:
        head: ProgramHead = head_codec.load(value)
    except CorruptRecordError:
        return None
    return head


def _digest(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode())
    except ValueError:
        return b""
