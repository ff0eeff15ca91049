"""Rest for those who take much of the daemon's time, so that others find it free.

A costly work cannot be interrupted. Who comes meanwhile waits for its end, and for the processor. So while clients with
quick works are served, the costly works of all clients together take at most a part of the time. Nobody rests when no
other client is served.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, TypeAlias

REST: Final = 3.0
"""Times what a costly work took: so long its client rests, and longer when others rest before it."""
LONGEST: Final = 1.0
"""Seconds that a client rests at most."""
BESIDE: Final = 1.0
"""Seconds for which a client with quick works counts after the last of them."""
_KEPT: Final = 4096

_REFUSAL: Final = 0.05  # seconds from one refusal of a user to the next
_AT_ONCE: Final = 20  # refusals of a user that come at once, after a second without any

Client: TypeAlias = tuple[Hashable, Hashable]
"""A user, and one of its clients."""


class Pace:
    """When the clients with costly works have their next turns. Not for several threads at a time."""

    def __init__(self) -> None:
        self._until: dict[Client, float] = {}
        self._paid: dict[Hashable, float] = {}  # by user: when the rest of all its clients ends
        self._quick: tuple[Client, float] | None = None  # the client with the last quick work, and when that was
        self._quick_before: tuple[Client, float] | None = None  # the last other client with a quick work

    def quick(self, user: Hashable, client: Hashable, now: float) -> None:
        """A quick work was carried out."""
        if self._quick is not None and self._quick[0] != (user, client):
            self._quick_before = self._quick
        self._quick = (user, client), now

    def costly(self, user: Hashable, client: Hashable, seconds: float, now: float) -> None:
        """A costly work has taken so long. Users rest beside each other, and each longer the more there are."""
        self._paid = {user: until for user, until in self._paid.items() if until > now}
        begin = self._paid.get(user, now)
        users = len(self._paid.keys() | {user})
        self._paid[user] = self._until[user, client] = min(begin + seconds * REST * users, now + LONGEST)
        if len(self._until) > _KEPT:
            self._until.clear()

    def until(self, user: Hashable, client: Hashable, now: float) -> float:
        """When this client has rested. 0: it may go on now."""
        until = self._until.get((user, client), 0.0)
        return until if until > now and self._is_beside_quick((user, client), now) else 0.0

    def _is_beside_quick(self, who: Client, now: float) -> bool:
        return any(
            seen is not None and seen[0] != who and now - seen[1] < BESIDE for seen in (self._quick, self._quick_before)
        )


class RefusalPace:
    """When refused connections are told so: the first ones of a user at once, many of them one after the other."""

    def __init__(self) -> None:
        self._next: dict[Hashable, float] = {}

    def wait(self, user: Hashable, now: float) -> float:
        """Seconds that one more refusal of this user waits."""
        at = max(self._next.get(user, 0.0), now - _AT_ONCE * _REFUSAL) + _REFUSAL
        self._next = {user: until for user, until in self._next.items() if until > now - _AT_ONCE * _REFUSAL}
        self._next[user] = min(at, now + LONGEST)
        return max(self._next[user] - now, 0.0)
