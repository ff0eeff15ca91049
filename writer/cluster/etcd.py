"""etcd as the cluster's engine, over the JSON gateway that every etcd node has beside gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from dspy_registry.registry_store.errors import ClusterUnavailableError
from dspy_registry.writer.cluster.engine import Events, LeaseGoneError, Outcome, Page, UnknownOutcomeError
from dspy_registry.writer.cluster.etcd_json import found_in, key_value, range_end, step_of, transaction
from dspy_registry.writer.cluster.gateway import Gateway, NodeError, NotSentError, said
from dspy_registry.writer.cluster.options import ClusterOptions, check_options

_ASKED_AGAIN: Final = "The daemon asks the next node by itself."


class Etcd:
    """An `Engine`. Belongs to one event loop. Raises InvalidArgumentError for options that cannot be used."""

    def __init__(self, options: ClusterOptions) -> None:
        check_options(options)
        self._prefix = options.prefix.encode()  # a user need not be allowed to read more
        self._gateway = Gateway(options)

    def __repr__(self) -> str:
        return f"Etcd({self._gateway!r})"

    @property
    def endpoint(self) -> str:
        """The node that is asked next."""
        return self._gateway.endpoint

    async def cluster_id(self) -> str:
        """See `Engine.cluster_id`."""
        answer = await self._gateway.ask("/v3/kv/range", {"key": self._prefix, "count_only": True})
        return f"{answer.header.cluster_id:x}"

    async def transact(
        self,
        expected: Mapping[bytes, int],
        puts: Mapping[bytes, bytes],
        reads: Sequence[bytes] = (),
        *,
        leased: Mapping[bytes, int] | None = None,
        below: Mapping[bytes, int] | None = None,
        removed: Sequence[bytes] = (),
    ) -> Outcome:
        """See `Engine.transact`. It is asked of one node: the caller repeats it, and knows what a repetition means."""
        body = transaction(expected, puts, reads, leased or {}, below or {}, removed)
        try:
            answer = await self._gateway.ask_one("/v3/kv/txn", body)
        except NotSentError as error:
            node = self._gateway.turn()
            raise ClusterUnavailableError(f"no connection to {node}: {said(error)}.") from error
        except NodeError as error:
            node = self._gateway.turn()
            raise UnknownOutcomeError(f"{node} did not say what became of a change.") from error
        except ClusterUnavailableError as error:  # timed out, or the leader changed: it may still be carried out
            self._gateway.turn()
            raise UnknownOutcomeError(error.message) from error
        return Outcome(answer.succeeded, answer.header.revision, found_in(answer))

    async def range_at(self, prefix: bytes, after: bytes = b"", revision: int = 0, limit: int = 500) -> Page:
        """See `Engine.range_at`."""
        body = {
            "key": after + b"\0" if after else prefix,
            "range_end": range_end(prefix),
            "limit": str(limit),
            "revision": str(revision),
        }
        answer = await self._gateway.ask("/v3/kv/range", body)
        return Page([key_value(pair) for pair in answer.kvs], revision or answer.header.revision, answer.more)

    async def watch_from(self, prefix: bytes, revision: int) -> AsyncIterator[Events]:
        """See `Engine.watch_from`."""
        wanted = {"key": prefix, "range_end": range_end(prefix), "start_revision": str(revision)}
        try:
            async with aclosing(self._gateway.stream("/v3/watch", {"create_request": wanted}, step_of)) as steps:
                async for step in steps:
                    yield step
        except NodeError as error:
            node = self._gateway.turn()
            raise ClusterUnavailableError(
                f"the watch of {node} has ended: {said(error)}.", remedy=_ASKED_AGAIN
            ) from error
        raise ClusterUnavailableError(f"{self._gateway.turn()} has ended the watch.", remedy=_ASKED_AGAIN)

    async def lease(self, seconds: int) -> int:
        """See `Engine.lease`."""
        return (await self._gateway.ask("/v3/lease/grant", {"TTL": str(seconds)})).ID

    async def keep_lease(self, lease: int) -> None:
        """See `Engine.keep_lease`."""
        answer = await self._gateway.ask("/v3/lease/keepalive", {"ID": str(lease)})
        if answer.result.TTL <= 0:
            raise LeaseGoneError(f"lease {lease:x} has ended")

    async def lease_left(self, lease: int) -> float:
        """See `Engine.lease_left`."""
        left = (await self._gateway.ask("/v3/lease/timetolive", {"ID": str(lease)})).TTL
        if left < 0:
            raise LeaseGoneError(f"lease {lease:x} has ended")
        return left

    async def end_lease(self, lease: int) -> None:
        """See `Engine.end_lease`."""
        await self._gateway.ask("/v3/lease/revoke", {"ID": str(lease)})

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._gateway.close()
