"""The works that wait for the commit thread. Users take turns by the time that their works took, as do their clients.

The client that has taken least goes first, so that a client with costly requests makes itself wait, and nobody else.
Beside clients with quick ones it also rests: see `pace`. Works of one client stay in order. Being away saves up no
turns: a client that comes back is where the others are.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

from dspy_registry.writer.daemon.group import Work
from dspy_registry.writer.daemon.pace import Pace

_AT_LEAST: Final = 20e-6
"""Seconds that a turn counts at once. What it took is known only when it has been staged."""
_COSTLY: Final = 500e-6  # seconds
_BYTE: Final = 1e-9
"""Seconds that the loop takes to receive a byte."""
_KEPT: Final = 4096
_BACKGROUND: Final = b"background"  # no client's id: that has another length

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
        self._most = _KEPT  # keys in `_used`, beyond which those that count no more are dropped

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, key: K) -> None:
        """Let a key wait, if it does not."""
        if key not in self._waiting:
            self._waiting.add(key)
            heapq.heappush(self._heap, (self._position(key), next(self._count), key))

    def first(self) -> K:
        """The next key, which still waits."""
        at, number, key = self._heap[0]
        while self._used.get(key, 0.0) > at:  # it was charged while it waited
            heapq.heapreplace(self._heap, (self._used[key], number, key))
            at, number, key = self._heap[0]
        return key

    def leave(self) -> None:
        """What `first` has told waits no longer, and has no turn."""
        self._waiting.discard(heapq.heappop(self._heap)[2])

    def take(self) -> K:
        """The next key, which waits no longer."""
        key = self.first()
        self.leave()
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
        if len(self._used) > self._most:
            self._used = {key: used for key, used in self._used.items() if used > self._floor}
            self._most = max(_KEPT, 2 * len(self._used))  # so that each key costs a look or two, not each charge all

    def _position(self, key: K) -> float:
        return max(self._used.get(key, 0.0), self._floor)


class FairQueue:
    """Works by user and client. Any thread may use it. The daemon's own works count as those of one more user.

    `clock` tells the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pace = Pace()
        self._resting: list[tuple[float, int, int | None, bytes]] = []  # a heap: until when, then which client
        self._asleep: set[tuple[int | None, bytes]] = set()  # the clients in that heap
        self._gave_way: set[Work] = set()  # put back last time
        self._count = itertools.count()
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
            self._gave_way = set(works)
            for work in reversed(works):
                self._queue_of(work).appendleft(work)
                self._users.give_back(user_of(work))
                self._clients[user_of(work)].give_back(client_of(work))
            for work in works:
                self._wait(work)

    def get(self, patience: float | None) -> Work | None:
        """The next work. None: none came within `patience` seconds (None: any time), or no more will come."""
        with self._arrived:
            if patience == 0.0 and not self._users and not self._resting:
                return None
            until = None if patience is None else self._clock() + patience
            while True:
                now = self._clock()
                work = self._take(now)
                if work is not None or self._is_ended or (until is not None and now >= until):
                    return work
                times = [at for at in (until, self._resting[0][0] if self._resting else None) if at is not None]
                self._arrived.wait(min(times) - now if times else None)

    def end(self) -> None:
        """No more works will come. Those that wait can still be taken."""
        with self._arrived:
            self._is_ended = True
            self._arrived.notify()

    def charge(self, work: Work, seconds: float, beside: float = 0.0) -> None:
        """Staging a work took so long, and its part of the rest of its commit `beside` seconds.

        It is also charged for the time that the loop took to receive it.
        """
        with self._arrived:
            user, client, own = user_of(work), client_of(work), seconds + work.held_bytes * _BYTE
            self._users.charge(user, own + beside)
            self._clients[user].charge(client, own + beside)
            self._note_pace(work, own, beside)
            if seconds >= _COSTLY:
                self._took[client] = seconds
            elif self._took:
                self._took.pop(client, None)
            if len(self._took) > _KEPT:
                self._took.clear()

    def _note_pace(self, work: Work, own: float, beside: float) -> None:
        if own >= _COSTLY and (work.client or work.is_background):
            self._pace.costly(user_of(work), client_of(work), own + beside, self._clock())
        elif work.client:
            self._pace.quick(user_of(work), work.client, self._clock())

    def expected(self, work: Work) -> float:
        """How long staging a work will take in seconds, by the last one of its client. 0: not long, or unknown."""
        return self._took.get(client_of(work), 0.0)

    def is_later(self, work: Work) -> bool:
        """Whether quick works of its group are staged before it: it will be costly, and gave way to no group yet."""
        return self.expected(work) > 0.0 and work not in self._gave_way

    def _queue_of(self, work: Work) -> deque[Work]:
        return self._works.setdefault((user_of(work), client_of(work)), deque())

    def _wait(self, work: Work) -> None:
        user = user_of(work)
        self._clients.setdefault(user, Turns()).wait(client_of(work))
        self._users.wait(user)

    def _take(self, now: float) -> Work | None:
        """The next work of a client that need not rest."""
        self._wake(now)
        while self._users:
            user = self._users.first()
            clients = self._clients[user]
            until = self._rests(user, clients.first(), now)
            if not until:
                return self._take_of(user)
            self._rest(user, clients.first(), until)
            clients.leave()
            if not clients:
                self._users.leave()
        return None

    def _take_of(self, user: int | None) -> Work:
        self._users.take()
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

    def _rests(self, user: int | None, client: bytes, now: float) -> float:
        """Until when a client must rest. 0: not now."""
        return 0.0 if self._is_ended else self._pace.until(user, client, now)

    def _rest(self, user: int | None, client: bytes, until: float) -> None:
        if (user, client) not in self._asleep:
            self._asleep.add((user, client))
            heapq.heappush(self._resting, (until, next(self._count), user, client))

    def _wake(self, now: float) -> None:
        """Let those wait for a turn who have rested, or need not any more."""
        while self._resting and not self._rests(*self._resting[0][2:], now):
            _, _, user, client = heapq.heappop(self._resting)
            self._asleep.discard((user, client))
            if (user, client) in self._works:
                self._clients[user].wait(client)
                self._users.wait(user)


def user_of(work: Work) -> int | None:
    """The id of the user who asked for a work. None: the daemon itself."""
    return work.by[0] if work.by and work.client else None


def client_of(work: Work) -> bytes:
    """Whose turn a work takes among those of its user: works in the background do not keep the daemon's others."""
    return work.client or (_BACKGROUND if work.is_background else b"")
