"""Putting a staged change into the cluster: one transaction, until it is known whether it went through."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from dspy_registry.registry_store.errors import ClusterAccessError, ClusterFullError, ClusterUnavailableError
from dspy_registry.writer.cluster.conflict import conflict
from dspy_registry.writer.cluster.engine import Engine, LeaseGoneError, Outcome, UnknownOutcomeError
from dspy_registry.writer.cluster.keys import Head, Keys, head_codec
from dspy_registry.writer.cluster.staged import Staged

UNAVAILABLE_SECONDS: Final = 5.0
"""A leader that was killed is replaced within about two seconds, so writes wait for longer than that."""
_ANSWERS_KEPT: Final = 2 * 3600  # seconds
_PAUSE: Final = 0.1  # seconds


class Decision:
    """Asks the cluster. Belongs to the daemon's loop."""

    def __init__(self, engine: Engine, keys: Keys) -> None:
        self._engine = engine
        self._keys = keys
        self._lease = 0
        self._leased_at = 0.0

    async def of(self, staged: Staged) -> Outcome:
        """Whether the transaction went through. A lost reply: the same again, to another node, until one can tell.

        Raises ClusterUnavailableError when none can: then it may have. Raises ClusterFullError, ClusterAccessError.
        """
        deadline = time.monotonic() + UNAVAILABLE_SECONDS
        is_unknown = False
        while True:
            try:
                return await self._transact(staged)
            except LeaseGoneError:  # the next try asks for another
                self._lease, last = 0, "This host's lease in the cluster has ended."
            except UnknownOutcomeError as error:
                is_unknown, last = True, error.message
            except ClusterUnavailableError as error:
                last = error.message
            except (ClusterFullError, ClusterAccessError) as error:
                if not is_unknown:  # otherwise an earlier try may have gone through
                    raise
                last = error.message
            if time.monotonic() > deadline:
                may = "The change may have been made." if is_unknown else "Nothing was changed."
                raise ClusterUnavailableError(f"{last} {may}")
            await asyncio.sleep(_PAUSE)

    async def _transact(self, staged: Staged) -> Outcome:
        keys, expected = self._keys, {self._keys.head: staged.position.head, **staged.expected}
        if not staged.puts:  # nothing to write: only whether it was decided on the newest state
            outcome = await self._engine.transact(expected, {}, (keys.head, *staged.held))
            return outcome if outcome.succeeded else conflict(outcome, keys, staged)
        await self._renew_lease()
        head = Head(staged.change, staged.position.number + 1, staged.position.host, time.time_ns() // 1_000_000)
        answers = {keys.answers + client: value for client, value in staged.answers.items()}
        puts = {**staged.puts, keys.head: head_codec.dump(head), **answers, keys.last_change: staged.change}
        outcome = await self._engine.transact(
            expected,
            puts,
            (keys.head, *staged.held, keys.last_change),
            leased=dict.fromkeys(answers, self._lease),
            removed=staged.removed,
        )
        if outcome.succeeded:
            return outcome
        last = outcome.found.get(keys.last_change)
        if last is not None and last.value == staged.change:  # it went through before, and its reply was lost
            return Outcome(True, last.revision)
        return conflict(outcome, keys, staged)

    async def _renew_lease(self) -> None:
        """Answers end with their lease: nobody has to remove them. A new lease before the last one is half over."""
        if self._lease == 0 or time.monotonic() - self._leased_at > _ANSWERS_KEPT / 2:
            self._lease = await self._engine.lease(_ANSWERS_KEPT)
            self._leased_at = time.monotonic()
