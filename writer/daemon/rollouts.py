"""Guarded rollouts in the writer daemon: now and then it looks at both versions' statistics, and moves the label.

What it decides and the label change in one commit. Only the statistics of the look before are kept in memory: a new
daemon goes on from the stored rollout, and its first look has nothing to compare.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.layout import versioned_key
from dspy_registry.registry_store.rollout import DONE, RUNNING, Rollout
from dspy_registry.registry_store.rollout_blocks import error_block, error_rate, no_row, slow_block
from dspy_registry.registry_store.rollout_rows import Rollouts, load_rollouts
from dspy_registry.registry_store.usage_rows import VersionRow, has_versions, version_codec
from dspy_registry.writer.daemon.host import Host, Submitted
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.rollouts import begin_step, begin_step_again, look

LOOK_EVERY: Final = 2.0
"""Seconds between two looks. Reporters send a batch about as often."""

T = TypeVar("T")
_log = logging.getLogger("dspy_registry")


class _Seen(NamedTuple):
    """The statistics of the old and the new version at a look, and when their rollout and its step began."""

    started_at: int
    old: VersionRow
    new: VersionRow
    step_began_at: int


def keep_rollouts(host: Host, clock: Callable[[], float] = time.time, every: float = LOOK_EVERY) -> None:
    """Let a daemon carry out rollouts. `clock` gives Unix time, `every` is in seconds. The status has a section."""
    if not has_versions(host.environment.dbs):
        return
    keeper = RolloutKeeper(host, clock, every)
    host.add_section("rollouts", keeper.status)
    host.add_task(keeper.run)


class RolloutKeeper:
    """The rollouts of the registry. Belongs to the daemon's loop."""

    def __init__(self, host: Host, clock: Callable[[], float], every: float) -> None:
        self._host = host
        self._clock = clock
        self._every = every
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._error = self._told = ""

    def status(self) -> dict[str, Any]:
        """The rollouts, also those that have ended, as `plain` gives them.

        `error`: why some do not go on; "": all do.
        """
        try:
            found = self._stored()
        except RegistryError as error:
            return {"rollouts": [], "error": error.message}
        errors = " ".join(filter(None, (_damages(found), self._error)))
        return {"rollouts": [plain(each) for each in found.sound], "error": errors}

    async def run(self) -> None:
        """Look now and then, until cancelled. Of the hosts of a cluster, only the one that leads looks."""
        has_led = False
        while True:
            has_led = self._leads and (has_led or await self._begin())
            await asyncio.sleep(self._every)
            error = await self._errors() if has_led and self._leads else ""
            if error and error != self._error:
                _log.error("a rollout does not go on: %s", error)
            self._error = error
            self._tell_of_damage()

    @property
    def _leads(self) -> bool:
        return self._host.steering is None or self._host.steering.leads

    async def _submit(self, stage: Callable[[Draft], T]) -> Submitted[T]:
        return await (self._host.steering or self._host).submit(stage)

    async def _begin(self) -> bool:
        """Go on where another daemon stopped: what was called meanwhile, nobody has looked at. False: not now.

        In a cluster the first look at each rollout begins its step again: one that is set aside holds up no other.
        """
        self._seen.clear()
        if self._host.steering is None and any(each.state == RUNNING for each in self._sound()):
            try:
                await self._submit(lambda draft: begin_step_again(draft, self._now()))
            except RegistryError as error:
                _log.warning("rollouts do not go on yet: %s", error)
                return False
        return True

    async def _errors(self) -> str:
        return " ".join([f"{place}: {why}" async for place, why in self._look_at_all()])

    async def _look_at_all(self) -> AsyncIterator[tuple[str, str]]:
        """Look at each rollout. Yields those that do not go on, and why: each by itself."""
        for rollout in self._sound():
            try:
                await self._look(rollout)
            except RegistryError as error:
                yield f"{rollout.name}@{rollout.label}", error.message

    def _tell_of_damage(self) -> None:
        try:
            damages = _damages(self._stored())
        except RegistryError:
            return
        if damages and damages != self._told:
            _log.error("rollouts are damaged: %s", damages)
        self._told = damages

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _sound(self) -> list[Rollout]:
        try:
            return self._stored().sound
        except RegistryError:
            return []

    def _stored(self) -> Rollouts:
        with self._host.environment.reading() as txn:
            return load_rollouts(txn, self._host.environment.dbs)

    async def _look(self, rollout: Rollout) -> None:
        place = rollout.name, rollout.label
        if not rollout.is_active:
            self._seen.pop(place, None)
            return
        rows = self._row(rollout, rollout.old), self._row(rollout, rollout.new)
        seen = _Seen(rollout.started_at, *rows, rollout.step_began_at)
        before = self._seen.get(place)
        if before is None or before.started_at != rollout.started_at:
            before = seen
        now = self._now()
        if self._is_by_another_clock(rollout):
            done = await self._submit(lambda draft: begin_step(draft, rollout, now))
            seen = before  # calls since then count with the next look
        else:
            old, new = (before.old, seen.old), (before.new, seen.new)
            blocks = error_block(old, new), error_rate(before.old), slow_block(old, new, rollout.plan.max_p95_increase)
            done = await self._submit(lambda draft: look(draft, rollout, blocks, now))
        if done.result is not None:  # otherwise the next look counts these calls
            self._seen[place] = seen._replace(step_began_at=done.result.step_began_at)
            _tell(rollout, done.result)

    def _is_by_another_clock(self, rollout: Rollout) -> bool:
        """Whether a host that may not lead has begun the step: steps take their time on the leader's clock."""
        if self._host.steering is None or rollout.state != RUNNING:
            return False
        seen = self._seen.get((rollout.name, rollout.label))
        return seen is None or (seen.started_at, seen.step_began_at) != (rollout.started_at, rollout.step_began_at)

    def _row(self, rollout: Rollout, version: int) -> VersionRow:
        key = versioned_key(rollout.name, version)
        with self._host.environment.reading() as txn:
            value = txn.get(key, None, self._host.environment.dbs.usage)
        return (
            no_row(rollout.name, version) if value is None else _loaded(value, key, self._host.environment.dbs.format)
        )


def _loaded(value: bytes, key: bytes, format: int) -> VersionRow:
    row: VersionRow = version_codec.load(value, key, format)
    return row


def _damages(found: Rollouts) -> str:
    """What to say of rollouts that cannot be read; "": nothing."""
    if not found.damaged:
        return ""
    named = " ".join(f"{place}: {why}" for place, why in found.damaged.items())
    return f"{named} `rollout abort` drops such a rollout and leaves its label as it is; a new one takes its place."


def plain(rollout: Rollout) -> dict[str, Any]:
    """A rollout as plain values, for the status."""
    facts = msgspec.structs.asdict(rollout)
    for field in ("errors", "slow"):
        facts[field] = msgspec.structs.asdict(getattr(rollout, field).total)
    facts["plan"] = msgspec.structs.asdict(rollout.plan)
    facts["percent"] = rollout.weights.get(rollout.new, 0.0)
    return facts


def _tell(before: Rollout, after: Rollout) -> None:
    if after.state == before.state and after.step == before.step:
        return
    named = after.name, after.label
    if after.is_active:
        _log.info("%s@%s gives version %d %g %% of the calls", *named, after.new, after.weights[after.new])
    elif after.state == DONE:
        _log.info("%s@%s names version %d: its rollout is done", *named, after.new)
    else:
        _log.warning("the rollout of %s@%s to version %d is %s: %s", *named, after.new, after.state, after.reason)
