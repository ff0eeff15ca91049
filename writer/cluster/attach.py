"""The daemon's extension that follows a cluster, and takes the changes of this host's clients to it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, Protocol

import msgspec

from dspy_registry.registry_store.cluster_rows import Position
from dspy_registry.registry_store.errors import ClusterMembershipError, ClusterUnavailableError, RegistryError
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.cluster.circuits import SharedCircuits
from dspy_registry.writer.cluster.election import LEASE_SECONDS, Election, Leadership
from dspy_registry.writer.cluster.engine import Engine, LeaseGoneError
from dspy_registry.writer.cluster.etcd import Etcd
from dspy_registry.writer.cluster.gateway import said
from dspy_registry.writer.cluster.global_rows import named
from dspy_registry.writer.cluster.keys import Keys
from dspy_registry.writer.cluster.membership import (
    different_from,
    own_records,
    read_all,
    refuse_different,
    refuse_other_cluster,
    stage_join,
)
from dspy_registry.writer.cluster.mirror import Mirror, stored_position
from dspy_registry.writer.cluster.options import ClusterOptions
from dspy_registry.writer.cluster.origin import Origin
from dspy_registry.writer.cluster.presence import PRESENCE_SECONDS, Beacon
from dspy_registry.writer.daemon.host import Host

_PAUSE: Final = 0.5  # seconds
_LAST_CHANGES: Final = 3.0  # seconds that accepted changes have at the stop
_CUT_OFF: Final = 3.0  # seconds without a word, from which on the status calls it an error
_SHOWN: Final = 100  # records set aside that the status names

_log = logging.getLogger("dspy_registry")


def new_host_id() -> str:
    """An id for a host that joins: random, so that no two hosts have one."""
    return os.urandom(8).hex()


def attach_cluster(host: Host, options: ClusterOptions) -> Cluster:
    """Let the daemon follow a cluster. Call it from an extension of the daemon.

    The status has a section `cluster`. A registry that follows no cluster yet joins this one, unless clients have
    registered what the cluster does not have. Raises InvalidArgumentError, UpgradeRequiredError.
    """
    host.environment.dbs.need_format_2("a cluster's records")
    cluster = Cluster(host, options, Etcd(options))
    host.change_taker = cluster.origin.take
    host.add_section("cluster", cluster.status)
    host.add_task(cluster.run)
    return cluster


class Part(Protocol):
    """A part of the cluster on this host that runs until it is cancelled."""

    async def run(self) -> None:
        """Until cancelled."""


async def _running(part: Part) -> None:
    """Run a part until cancelled. Where it fails, it alone begins again: without one of them no host is followed."""
    while True:
        try:
            await part.run()
        except Exception:
            _log.exception("%s failed, and begins again", type(part).__name__)
        await asyncio.sleep(_PAUSE)


class Cluster:
    """This host's part in a cluster. Belongs to the daemon's loop."""

    def __init__(self, host: Host, options: ClusterOptions, engine: Engine) -> None:
        self._host = host
        self._options = options
        self._engine = engine
        position = stored_position(host) or Position("", new_host_id())
        self.keys = Keys(options.prefix, position.host)
        self.mirror = Mirror(host, engine, self.keys, position)
        self.origin = Origin(host, engine, self.keys, self.mirror)
        self._beacon = Beacon(engine, self.keys, self.mirror)
        self.election = Election(engine, self.keys)
        self.mirror.observers.append(self.election)
        self._parts: list[Part] = [self.mirror, self._beacon, self.election]
        host.steering = Leadership(self.election, self.origin, self.keys)
        self._circuits: SharedCircuits | None = None
        if host.health is not None:
            self._circuits = SharedCircuits(engine, self.keys, host.health)
            self.mirror.observers.append(self._circuits)
            self._parts.append(self._circuits)
        self._error = ""

    def __repr__(self) -> str:
        return f"Cluster({self._options!r}, {self.mirror.position})"

    def status(self) -> dict[str, Any]:
        """What an operator wants to know. Nothing secret is in it."""
        mirror, position = self.mirror, self.mirror.position
        lag = mirror.silent
        aside = {named(*place): reason for place, reason in list(mirror.aside.items())}
        aside |= self._circuits.aside if self._circuits is not None else {}
        cut_off = f"cut off: {mirror.error or 'the watch is silent'}" if lag > _CUT_OFF else ""
        return {
            "cluster": position.cluster or None,
            "prefix": self._options.prefix,
            "host": position.host,
            "applied": mirror.applied,
            "newest": max(mirror.newest, mirror.applied),
            "changes": position.number,
            "lag_seconds": round(lag, 3),
            "hosts": {host: msgspec.structs.asdict(one) for host, one in sorted(mirror.hosts.alive.items())},
            "leader": self.election.leader,
            "leads": self.election.leads,
            "own_changes": self.origin.changes,
            "waiting": self.origin.waiting,
            "conflicts": self.origin.conflicts,
            "reconnects": mirror.reconnects,
            "lists": mirror.lists,
            "circuits": self._circuits.count if self._circuits is not None else 0,
            "set_aside": dict(islice(aside.items(), _SHOWN)),
            "error": self._error or mirror.error or cut_off or self._beacon.error,
            "errors": len(aside),
        }

    async def run(self) -> None:
        """Join, then follow, until cancelled. At the stop, what was accepted is carried out first."""
        tasks = [asyncio.ensure_future(self.origin.run())]
        try:
            await self._join()
            tasks += [asyncio.ensure_future(_running(part)) for part in self._parts]
            # Not `gather`: at the stop it would end them before they have carried out what was accepted.
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            await self._end(tasks)

    async def _end(self, tasks: Sequence[asyncio.Future[None]]) -> None:
        await self.origin.drain(_LAST_CHANGES)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.origin.refuse_all(ClusterUnavailableError("the writer daemon is stopping. Nothing was changed."))
        if self.mirror.position.cluster:
            await self.mirror.keep_position()
        for end in (self.election.end, self._beacon.end):
            try:
                await end()
            except (RegistryError, LeaseGoneError) as error:
                _log.info(
                    "the cluster cannot be told that this host stops; its leases there end after %d seconds: %s",
                    max(LEASE_SECONDS, PRESENCE_SECONDS),
                    said(error),
                )
        await self._engine.close()

    async def _join(self) -> None:
        """Make sure that registry and cluster belong together. Tries again while the cluster does not answer."""
        while True:
            try:
                await self._join_once()
            except ClusterMembershipError as error:
                self._note(error)
                self.origin.refusal = error
            except RegistryError as error:
                self._note(error)
            else:
                self.origin.refusal = None
                self._error = ""
                return
            await asyncio.sleep(_PAUSE)

    def _note(self, error: RegistryError) -> None:
        if self._error != error.message:
            _log.error("the cluster is not followed: %s The daemon tries again by itself.", error)
        self._error = error.message

    async def _join_once(self) -> None:
        found = await self._engine.cluster_id()
        position = self.mirror.position
        if position.cluster:
            refuse_other_cluster(position, found)
            return
        with self._host.environment.reading() as txn:
            own = own_records(Catalog(txn, self._host.environment.dbs))
        if own:  # a new host need not read everything twice
            records, _ = await read_all(self._engine, self.keys)
            refuse_different(different_from(own, self.keys, records))
        joined = Position(found, position.host)
        await self._host.submit(lambda draft: stage_join(draft, joined, ()))
        self.mirror.position = joined
        _log.info("this registry follows cluster %s now, as host %s", found, joined.host)
