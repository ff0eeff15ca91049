"""Hosts that change the cluster at once take turns: the cluster takes one change at a time, and refuses the others.

A change that is refused has cost a host its staging, and etcd as much as one that goes through. So a host that was
refused lets the others go first for a while, in the order of their ids, after the host that went last. It waits no
longer than they should take: a host that has nothing to change holds nobody up for long. Turns save work. Nothing rests
on them: the comparison of `head` decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_MEMORY: Final = 0.5
"""Seconds for which turns are kept after a refusal or a turn that another host used, and a host counts as one that
changes."""
_SHORTEST, _LONGEST = 0.004, 0.06  # seconds of a turn
_SHARE_OF_NEWEST: Final = 0.3  # in the moving average of how long an own change takes
_TURN: Final = 2.0  # own changes that a turn of another host lasts: it has to be seen there, too


class Turns:
    """Of one host. Belongs to the daemon's loop. `clock` is monotonic, in seconds."""

    def __init__(self, me: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._me = me
        self._clock = clock
        self._seen: dict[str, float] = {}  # when a change of each host was last shown here
        self._last = me
        self._kept_until = 0.0
        self._others_change = False  # since this host last asked for its turn
        self._takes = _SHORTEST
        self._moved = asyncio.Event()

    def saw(self, host: str) -> None:
        """A change of this host is shown here now."""
        now = self._clock()
        self._seen = {of: at for of, at in self._seen.items() if now - at < _MEMORY}
        self._seen[host], self._last = now, host
        self._others_change = self._others_change or host != self._me
        self._moved.set()

    def refused(self) -> None:
        """The cluster has refused a change of this host, because another one was first."""
        self._kept_until = self._clock() + _MEMORY

    def took(self, seconds: float) -> None:
        """A change of this host took so long from its staging until it was shown: before that no host can go next."""
        self._takes += _SHARE_OF_NEWEST * (seconds - self._takes)

    def renew(self) -> None:
        """Keep the turns while others use theirs: without that each host would be refused again now and then."""
        if self._others_change and (now := self._clock()) < self._kept_until:
            self._kept_until = now + _MEMORY
        self._others_change = False

    @property
    def left(self) -> float:
        """Seconds until it is this host's turn, unless the others are faster; 0: it is."""
        now = self._clock()
        if now >= self._kept_until:
            return 0.0
        hosts = sorted({self._me, *(host for host, at in self._seen.items() if now - at < _MEMORY)})
        if self._last not in hosts:
            return 0.0
        before = (hosts.index(self._me) - hosts.index(self._last) - 1) % len(hosts)
        turn = min(max(_TURN * self._takes, _SHORTEST), _LONGEST)
        return max(0.0, self._seen.get(self._last, 0.0) + before * turn - now)

    async def wait(self) -> None:
        """Until it is this host's turn."""
        self.renew()
        while (seconds := self.left) > 0:
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), seconds)
            except asyncio.TimeoutError:
                return
