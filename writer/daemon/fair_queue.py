"""The works that wait for the commit thread. Users take turns by the time that their works took, as do their clients.

Whoever has taken least goes first, so that a client with costly requests makes itself wait, and nobody else. Works of
one client stay in order. Being away saves up no turns: who comes back is where the others are.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Final, Generic, TypeVar

from dspy_registry.writer.daemon.group import Work

_AT_LEAST: Final = 20e-6
"""Seconds that a turn counts at once. What it took is known only when it has been staged."""
_COSTLY: Final = 500e-6  # seconds
_KEPT: Final = 4096

K = TypeVar("K", bound=Hashable)


class Turns(Generic[K]):
    """Keys that wait for a turn. The one that has used least time is next; among equals, the one that waits longest.

    Turns are taken for a whole group, which may then have no time for all of them. So `give_back` undoes what a turn
    counts, and the floor follows the first turn of each group only, which is always used. If the floor followed a turn
    that is given back, those that have used less would lose their lead, again and again.
    """

    def __init__(self) -> None:
        self._used: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._waiting: set[K] = set()
        self._count = itertools.count()
        self._floor = 0.0  # what the first of the last group had used: nobody who waits has used less
        self._begins = True  # the next turn is the first of a group

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, key: K) -> None:
        """Let a key wait, if it does not."""
        if key not in self._waiting:
            self._waiting.add(key)
            heapq.heappush(self._heap, (self._position(key), next(self._count), key))

    def take(self) -> K:
        """The next key, which waits no longer."""
        at, number, key = heapq.heappop(self._heap)
        while self._used.get(key, 0.0) > at:  # it was charged while it waited
            at, number, key = heapq.heappushpop(self._heap, (self._used[key], number, key))
        self._waiting.discard(key)
        if self._begins:
            self._floor, self._begins = self._position(key), False
        self._used[key] = self._position(key) + _AT_LEAST
        return key

    def give_back(self, key: K) -> None:
        """A turn of this key was not used."""
        if key in self._used:
            self._used[key] -= _AT_LEAST

    def charge(self, key: K, seconds: float) -> None:
        """A turn of this key took so long."""
        self._begins = True
        self._used[key] = self._position(key) + seconds
        if len(self._used) > _KEPT:
            self._used = {key: used for key, used in self._used.items() if used > self._floor}

    def _position(self, key: K) -> float:
        return max(self._used.get(key, 0.0), self._floor)


class FairQueue:
    """Works by user and client. Any thread may use it. The daemon's own works count as those of one more user."""

    def __init__(self) -> None:
        self._users: Turns[int | None] = Turns()
        self._clients: dict[int | None, Turns[bytes]] = {}
        self._works: dict[tuple[int | None, bytes], deque[Work]] = {}
        self._took: dict[bytes, float] = {}  # of clients with costly works: seconds of their last ones
        self._arrived = threading.Condition()
        self._is_ended = False

    def put(self, work: Work) -> None:
        """Add a work."""
        with self._arrived:
            self._queue_of(work).append(work)
            self._wait(work)
            self._arrived.notify()

    def put_back(self, works: Sequence[Work]) -> None:
        """Add works that were taken, before those of the same clients that were not."""
        with self._arrived:
            for work in reversed(works):
                self._queue_of(work).appendleft(work)
                self._users.give_back(user_of(work))
                self._clients[user_of(work)].give_back(work.client)
            for work in works:
                self._wait(work)

    def get(self, patience: float | None) -> Work | None:
        """The next work. None: none came within `patience` seconds (None: any time), or no more will come."""
        with self._arrived:
            if not self._users and not self._is_ended:
                self._arrived.wait_for(lambda: self._users or self._is_ended, patience)
            return self._take() if self._users else None

    def end(self) -> None:
        """No more works will come. Those that wait can still be taken."""
        with self._arrived:
            self._is_ended = True
            self._arrived.notify()

    def charge(self, work: Work, seconds: float) -> None:
        """Staging a work took so long."""
        with self._arrived:
            user = user_of(work)
            self._users.charge(user, seconds)
            self._clients[user].charge(work.client, seconds)
            if seconds >= _COSTLY:
                self._took[work.client] = seconds
            elif self._took:
                self._took.pop(work.client, None)
            if len(self._took) > _KEPT:
                self._took.clear()

    def expected(self, work: Work) -> float:
        """How long staging a work will take in seconds, by the last one of its client. 0: not long, or unknown."""
        return self._took.get(work.client, 0.0)

    def _queue_of(self, work: Work) -> deque[Work]:
        return self._works.setdefault((user_of(work), work.client), deque())

    def _wait(self, work: Work) -> None:
        user = user_of(work)
        self._clients.setdefault(user, Turns()).wait(work.client)
        self._users.wait(user)

    def _take(self) -> Work:
        user = self._users.take()
        clients = self._clients[user]
        client = clients.take()
        queue = self._works[user, client]
        work = queue.popleft()
        if queue:
            clients.wait(client)
        else:
            del self._works[user, client]
        if clients:
            self._users.wait(user)
        return work


def user_of(work: Work) -> int | None:
    """The id of the user who asked for a work. None: the daemon itself."""
    return work.by[0] if work.by and work.client else None
