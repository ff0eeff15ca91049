"""One host of the cluster leads: it carries out guarded rollouts. The others wait until its key goes.

The leader is the host that put `d/leader` while nobody had. The key ends with its lease, so a host that dies, or is cut
off, leads no longer. What a leader changes compares the revision of its key. So a host that has lost the lead without
knowing it changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from dspy_registry.registry_store.errors import ClusterUnavailableError, RegistryError
from dspy_registry.writer.cluster.engine import Engine, KeyValue, LeaseGoneError
from dspy_registry.writer.cluster.keys import Keys
from dspy_registry.writer.cluster.observer import Observer
from dspy_registry.writer.cluster.origin import Origin
from dspy_registry.writer.daemon.host import Submitted
from dspy_registry.writer.draft import Draft

LEASE_SECONDS: Final = 10
"""A leader that says nothing for about so long is followed by another one."""
_PERIOD: Final = 2.5  # seconds between two prolongations, or two tries

T = TypeVar("T")
_log = logging.getLogger("dspy_registry")


class Election(Observer):
    """This host's part in the election. Belongs to the daemon's loop. `leader` is a host's id; None: nobody leads.

    `term` is the revision of this host's key while it is the leader; 0: it is not.
    """

    def __init__(self, engine: Engine, keys: Keys) -> None:
        super().__init__(keys.leader)
        self._engine = engine
        self._keys = keys
        self._me = keys.host.decode()
        self._lease = 0
        self._kept_at = 0.0  # on the monotonic clock, when the last prolongation that went through was asked for
        self._held_at = 0  # the revision of the leader's key; 0: there is none
        self._may_stand = asyncio.Event()
        self.leader: str | None = None
        self.term = 0
        self.error = ""

    @property
    def leads(self) -> bool:
        """Whether this host leads, as far as it can know: its lease has been prolonged in time."""
        return self.term > 0 and time.monotonic() - self._kept_at < LEASE_SECONDS

    async def run(self) -> None:
        """Keep the lead, or stand for it when nobody leads, until cancelled."""
        while True:
            self._may_stand.clear()
            try:
                await self._keep() if self.term else await self._stand()
                self.error = ""
            except LeaseGoneError:
                self._lease = self.term = 0
            except RegistryError as error:
                self.error = error.message
            try:
                await asyncio.wait_for(self._may_stand.wait(), _PERIOD)
            except asyncio.TimeoutError:
                continue

    async def _keep(self) -> None:
        asked_at = time.monotonic()
        await self._engine.keep_lease(self._lease)
        self._kept_at = asked_at

    async def _stand(self) -> None:
        """Put the key, if nobody leads, or an earlier daemon of this very host does."""
        if self.leader not in (None, self._me):
            return
        asked_at = time.monotonic()
        if self._lease == 0:
            self._lease = await self._engine.lease(LEASE_SECONDS)
        else:
            await self._engine.keep_lease(self._lease)
        self._kept_at = asked_at
        key = self._keys.leader
        await self._engine.transact({key: self._held_at}, {key: self._me.encode()}, leased={key: self._lease})

    async def end(self) -> None:
        """Give the lead up at once."""
        lease, self._lease, self.term = self._lease, 0, 0
        if lease:
            await self._engine.end_lease(lease)

    # What the watch shows: see `Observer`

    async def take_all(self, items: Sequence[KeyValue]) -> None:
        """See `Observer.take_all`."""
        found = [item for item in items if item.key == self._keys.leader]
        self.take(found[0] if found else KeyValue(self._keys.leader, None, 0))

    def take(self, change: KeyValue) -> None:
        """See `Observer.take`."""
        if change.key != self._keys.leader:
            return
        led, is_mine = self.term, bool(self._lease) and change.lease == self._lease
        if change.value is None:
            self.leader, self._held_at, self.term = None, 0, 0
            self._may_stand.set()
        else:
            self.leader, self._held_at = change.value.decode("ascii", "replace"), change.revision
            self.term = change.revision if is_mine else 0
        if bool(led) != bool(self.term):
            _log.info("this host leads the cluster now" if self.term else "this host leads the cluster no longer")


class Leadership:
    """What only the leader changes: see `Steering`."""

    def __init__(self, election: Election, origin: Origin, keys: Keys) -> None:
        self._election = election
        self._origin = origin
        self._keys = keys

    @property
    def leads(self) -> bool:
        """See `Steering.leads`."""
        return self._election.leads

    async def submit(self, stage: Callable[[Draft], T]) -> Submitted[T]:
        """See `Steering.submit`."""
        term = self._election.term
        if not term:
            raise ClusterUnavailableError("this host does not lead the cluster, and steers nothing.")
        held: Mapping[bytes, int] = {self._keys.leader: term}
        return await self._origin.submit(stage, held)
