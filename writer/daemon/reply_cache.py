"""What each client was answered last, so that a request sent twice has the effect of once.

A request is sent again when its answer was lost: with the connection, or with a daemon that was killed. So answers
are stored in the transaction of the effect they tell of, and are here in memory meanwhile. Answers to requests that
changed nothing (a failure, a record equal to the stored one) are kept in memory alone: the registry is the same
whether such a request is made once or again. They are kept for as long as the client may ask for them, because later
requests of its own may have been carried out by then.
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

CLIENTS_KEPT: Final = 4096
"""Clients whose answers are remembered; those silent for longest are forgotten."""
BYTES_KEPT: Final = 64 * 1024 * 1024
"""Memory for answers; beyond it, too, those silent for longest are forgotten."""
_NAMES_KEPT: Final = 100  # of each kind, of what a discovery report has changed
_ANSWER_BYTES: Final = 256  # of memory, for an answer beside its texts
_TEXT_BYTES: Final = 64  # and for a text beside its characters

_log = logging.getLogger("dspy_registry")


class Answered:
    """The last answers of each client, longest silent first. Belongs to the commit thread."""

    def __init__(self, limit: int = CLIENTS_KEPT, most_bytes: int = BYTES_KEPT) -> None:
        self._limit = limit
        self._most_bytes = most_bytes
        self.held_bytes = 0
        self._clients: OrderedDict[bytes, tuple[Effect, ...]] = OrderedDict()
        self.forgotten: set[bytes] = set()
        """Clients to be removed from the store with the next commit."""

    def __repr__(self) -> str:
        return f"Answered({len(self._clients)} clients)"

    def __len__(self) -> int:
        return len(self._clients)

    @classmethod
    def load(cls, environment: Environment, limit: int = CLIENTS_KEPT) -> Answered:
        """What is stored."""
        answered = cls(limit)
        stored: list[tuple[int, bytes, tuple[Effect, ...]]] = []
        with environment.reading() as txn:
            for client, value in txn.cursor(environment.dbs.requests):
                try:
                    remembered: Remembered = remembered_codec.load(value)
                except CorruptRecordError as error:
                    _log.warning("%s Its client's last request could take effect twice.", error)
                    answered.forgotten.add(client)
                else:
                    stored.append((remembered.revision, client, remembered.answers))
        for _, client, answers in sorted(stored, key=lambda row: row[0]):
            answered.keep(client, answers)
        return answered

    def of(self, client: bytes) -> tuple[Effect, ...]:
        """The client's answers, by rising request."""
        return self._clients.get(client, ())

    def keep(self, client: bytes, answers: tuple[Effect, ...]) -> None:
        """These are the client's last answers now."""
        self.held_bytes += _memory(answers) - _memory(self._clients.get(client, ()))
        self._clients[client] = answers
        self._clients.move_to_end(client)
        self.forgotten.discard(client)
        while len(self._clients) > self._limit or (self.held_bytes > self._most_bytes and len(self._clients) > 1):
            longest_silent, forgotten = self._clients.popitem(last=False)
            self.held_bytes -= _memory(forgotten)
            self.forgotten.add(longest_silent)


def _memory(answers: tuple[Effect, ...]) -> int:
    """At most; not by `sys.getsizeof`, which says more of a text once it has been encoded."""
    return sum(_ANSWER_BYTES + sum(map(_text_memory, _texts(answer))) for answer in answers)


def _text_memory(text: str) -> int:
    return _TEXT_BYTES + len(text) * (1 if text.isascii() else 8)


def _texts(answer: Effect) -> Iterable[str]:
    if isinstance(answer, Failed):
        for argument in answer.arguments:
            yield from argument if isinstance(argument, tuple) else (str(argument),)
    elif isinstance(answer, Applied):
        yield from (*answer.declared, *answer.withdrawn, *answer.refused)


def find(answers: tuple[Effect, ...], request: int) -> Effect | None:
    """The answer already given to a request, or that it came too late; None when the request is new."""
    if not answers or request > answers[-1].id:
        return None
    for answer in answers:
        if answer.id == request:
            return answer
    return overtaken(request, answers[-1].id)


def overtaken(request: int, later: int) -> Failed:
    """The answer to a request that took another way than a later one of its client, and came after it."""
    error = ProtocolError(f"request {request} came after request {later} of the same client, and was not carried out.")
    return msgspec.structs.replace(wire_errors.pack(request, error), was_overtaken=True)


def following(answers: Iterable[Effect], oldest: int, added: Iterable[Effect]) -> tuple[Effect, ...]:
    """A client's answers with those added that it may still ask for."""
    kept = [answer for answer in answers if answer.id >= oldest]
    kept.extend(map(_shortened, added))
    return tuple(kept[-WINDOW:])


def _shortened(answer: Effect) -> Effect:
    """The answer as it is kept. What discovery changed may be every module there is: of that, the first names."""
    if not isinstance(answer, Applied):
        return answer
    declared, withdrawn, refused = map(_first_of, (answer.declared, answer.withdrawn, answer.refused))
    return Applied(answer.id, answer.revision, declared, withdrawn, refused)


def _first_of(names: tuple[str, ...]) -> tuple[str, ...]:
    more = len(names) - _NAMES_KEPT
    return (*names[:_NAMES_KEPT], f"and {more} more") if more > 0 else names


def is_client_id(client: bytes) -> bool:
    """Whether this may name a client."""
    return len(client) == CLIENT_ID_BYTES
