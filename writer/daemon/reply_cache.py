"""The reply cache: the last answers to each client, so that a request that is sent twice takes effect once.

A client sends a request again when its answer was lost with the connection or with a killed daemon. So an answer is
stored in the same transaction as its effect, and this cache holds it in memory. Answers to requests that changed
nothing (a failure, a record equal to the stored one) are in memory only: the registry is the same whether such a
request is made once or twice. They are kept for as long as the client may ask for them, because later requests of the
same client may have been carried out by then.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from dspy_registry.registry_store import wire_errors
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import CorruptRecordError, ProtocolError
from dspy_registry.registry_store.protocol import (
    CLIENT_ID_BYTES,
    WINDOW,
    Applied,
    Effect,
    Failed,
    Remembered,
    remembered_codec,
)
from dspy_registry.registry_store.wording import first_of

CLIENTS_KEPT: Final = 4096
"""The most clients whose answers are kept. For one more, the client silent for longest is forgotten."""
BYTES_KEPT: Final = 64 * 1024 * 1024
"""Memory for answers. If it is full, the client silent for longest is forgotten."""
_NAMES_KEPT: Final = 100  # of each kind, in the answer to a discovery report
_ANSWER_BYTES: Final = 256  # of memory, for an answer beside its texts
_TEXT_BYTES: Final = 64  # of memory, for a text beside its characters

_log = logging.getLogger("dspy_registry")


class ReplyCache:
    """The last answers of each client, longest silent first. Belongs to the commit thread."""

    def __init__(self, limit: int = CLIENTS_KEPT, most_bytes: int = BYTES_KEPT) -> None:
        self._limit = limit
        self._most_bytes = most_bytes
        self.held_bytes = 0
        self._clients: OrderedDict[bytes, tuple[Effect, ...]] = OrderedDict()
        self.forgotten: set[bytes] = set()
        """Clients to be removed from the store with the next commit."""

    def __repr__(self) -> str:
        return f"ReplyCache({len(self._clients)} clients)"

    def __len__(self) -> int:
        return len(self._clients)

    @classmethod
    def load(cls, environment: Environment, limit: int = CLIENTS_KEPT) -> ReplyCache:
        """The cache as the registry has it. A damaged entry is logged and dropped."""
        replies = cls(limit)
        stored: list[tuple[int, bytes, tuple[Effect, ...]]] = []
        with environment.reading() as txn:
            for client, value in txn.cursor(environment.dbs.requests):
                try:
                    remembered: Remembered = remembered_codec.load(value, client, environment.dbs.format)
                except CorruptRecordError as error:
                    _log.warning("%s Its client's last request could take effect twice.", error)
                    replies.forgotten.add(client)
                else:
                    stored.append((remembered.revision, client, remembered.answers))
        for _, client, answers in sorted(stored, key=lambda row: row[0]):
            replies.keep(client, answers)
        return replies

    def of(self, client: bytes) -> tuple[Effect, ...]:
        """The client's answers, by rising request. Empty for an unknown client."""
        return self._clients.get(client, ())

    def keep(self, client: bytes, answers: tuple[Effect, ...]) -> None:
        """Replace the client's answers."""
        self.held_bytes += _memory(answers) - _memory(self._clients.get(client, ()))
        self._clients[client] = answers
        self._clients.move_to_end(client)
        self.forgotten.discard(client)
        while len(self._clients) > self._limit or (self.held_bytes > self._most_bytes and len(self._clients) > 1):
            client, forgotten = self._clients.popitem(last=False)
            self.held_bytes -= _memory(forgotten)
            self.forgotten.add(client)


def _memory(answers: tuple[Effect, ...]) -> int:
    """An upper bound in bytes. Not by `sys.getsizeof`: a text's size grows once it has been encoded."""
    return sum(_ANSWER_BYTES + sum(map(_text_memory, _texts(answer))) for answer in answers)


def _text_memory(text: str) -> int:
    return _TEXT_BYTES + len(text) * (1 if text.isascii() else 8)


def _texts(answer: Effect) -> Iterable[str]:
    if isinstance(answer, Failed):
        for argument in answer.arguments:
            yield from argument if isinstance(argument, tuple) else (str(argument),)
    elif isinstance(answer, Applied):
        yield from (*answer.declared, *answer.withdrawn, *answer.refused)


def cached_reply(answers: tuple[Effect, ...], request: int) -> Effect | None:
    """The answer given before to this request, or the error that it came too late. None: the request is new."""
    if not answers or request > answers[-1].id:
        return None
    for answer in answers:
        if answer.id == request:
            return answer
    return overtaken(request, answers[-1].id)


def overtaken(request: int, later: int) -> Failed:
    """The answer to a request that arrived after a later one of the same client, over another connection."""
    error = ProtocolError(f"request {request} came after request {later} of the same client, and was not carried out.")
    return msgspec.structs.replace(wire_errors.pack(request, error), was_overtaken=True)


def following(answers: Iterable[Effect], oldest: int, added: Iterable[Effect]) -> tuple[Effect, ...]:
    """A client's answers and the added ones, without answers that the client will not ask for."""
    kept = [answer for answer in answers if answer.id >= oldest]
    kept.extend(map(_shortened, added))
    return tuple(kept[-WINDOW:])


def _shortened(answer: Effect) -> Effect:
    """The answer as it is kept. A discovery report may have changed every module: the first names are kept."""
    if not isinstance(answer, Applied):
        return answer
    kept = (tuple(first_of(names, _NAMES_KEPT)) for names in (answer.declared, answer.withdrawn, answer.refused))
    return Applied(answer.id, answer.revision, *kept)


def is_client_id(client: bytes) -> bool:
    """Whether this has the form of a client's id."""
    return len(client) == CLIENT_ID_BYTES
