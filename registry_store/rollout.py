"""A guarded rollout: how a label moves from one version to another in steps, and when it returns. Pure.

The label names the old version. Each step gives the new one a larger share. Between two looks, both versions' own
statistics make a block (`comparison`), one of failures and one of slow calls. docs/rollouts.md says what the test
holds, in figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.comparison import Block, Comparison
from dspy_registry.registry_store.records import By

ALPHA_ERRORS: Final = 0.04
ALPHA_SLOW: Final = 0.01
"""The most that a version which is not worse is returned for its errors, and for its durations: of all rollouts."""
MIN_CALLS: Final = 20
"""Calls of the new version since the rollout began. With fewer, a step does not end, however long it takes."""
SLOW: Final = 0.95
"""A call is slow above this quantile of the old version's window."""

MAX_STEPS: Final = 16
MAX_EVERY: Final = 30 * 24 * 3600.0  # seconds
MAX_P95_INCREASE: Final = 100.0

RUNNING: Final = "running"
PAUSED: Final = "paused"
DONE: Final = "done"
RETURNED: Final = "returned"
ABORTED: Final = "aborted"
OVERTAKEN: Final = "overtaken"
ACTIVE: Final = (RUNNING, PAUSED)


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """What an operator asks for. `steps` are the new version's shares in percent, rising to 100.

    Each step takes `every` seconds. The share of failures may rise by `max_error_increase` (0.02: two percentage
    points), the 95th percentile of durations by `max_p95_increase` (0.2: to 1.2 times).
    """

    steps: tuple[float, ...] = (1.0, 10.0, 50.0, 100.0)
    every: float = 600.0
    max_error_increase: float = 0.02
    max_p95_increase: float = 0.2


class Rollout(msgspec.Struct, frozen=True, array_like=True):
    """One rollout. `state` is one of the words above, `step` an index of the plan's steps, `reason` why it ended.

    Times are milliseconds since the epoch. `by` asked for it; None: not known.
    """

    name: str
    label: str
    old: int
    new: int
    plan: Plan
    started_at: int
    step_began_at: int
    step: int = 0
    state: str = RUNNING
    errors: Comparison = Comparison()
    slow: Comparison = Comparison()
    reason: str = ""
    ended_at: int = 0
    by: By | None = None

    @property
    def is_active(self) -> bool:
        """Whether it still moves, or may move again."""
        return self.state in ACTIVE

    @property
    def weights(self) -> dict[int, float]:
        """What the label is to name, as weights by version; a new dict."""
        share = self.plan.steps[self.step] if self.is_active else 100.0 * (self.state == DONE)
        return {version: weight for version, weight in ((self.old, 100 - share), (self.new, share)) if weight}


def plan_problems(plan: Plan) -> Iterator[str]:
    """What is wrong with a plan, one line each."""
    steps = plan.steps
    given: Any = steps  # whatever a caller gave
    numbers = (*(given if isinstance(given, (tuple, list)) else ("",)), *msgspec.structs.astuple(plan)[1:])
    if not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in numbers):
        yield "steps is a tuple of numbers, and every, max_error_increase and max_p95_increase are numbers"
        return
    if not 0 < len(steps) <= MAX_STEPS:
        yield f"there are {len(steps)} steps, there must be 1 to {MAX_STEPS}"
    elif not (steps[0] >= 0.01 and steps[-1] == 100 and all(one < other for one, other in pairwise(steps))):
        yield "steps must rise, from 0.01 percent or more to 100"
    for field, value, most in (
        ("every", plan.every, MAX_EVERY),
        ("max_error_increase", plan.max_error_increase, 1.0),
        ("max_p95_increase", plan.max_p95_increase, MAX_P95_INCREASE),
    ):
        if not 0 <= value <= most:
            yield f"{field} is {value!r}, it must be from 0 to {most:g}"


def observed(rollout: Rollout, errors: Block, error_rate: float, slow: Block) -> Rollout:
    """The rollout with one more block of each kind. `error_rate` was expected of the old version, 0 to 1."""
    return msgspec.structs.replace(
        rollout,
        errors=rollout.errors.and_block(errors, error_rate),
        slow=rollout.slow.and_block(slow, 1 - SLOW),
    )


def decided(rollout: Rollout, now: int) -> Rollout:
    """The rollout as it goes on at `now`, milliseconds since the epoch: as it is, a step further, or ended.

    A paused one takes no step, and still returns.
    """
    if not rollout.is_active:
        return rollout
    reason = why_return(rollout)
    if reason:
        return ended(rollout, RETURNED, reason, now)
    if rollout.state == PAUSED or now - rollout.step_began_at < rollout.plan.every * 1000:
        return rollout
    if rollout.errors.total.new_calls < MIN_CALLS:
        return rollout
    following = msgspec.structs.replace(rollout, step=rollout.step + 1, step_began_at=now)
    if following.plan.steps[following.step] == 100:
        return ended(following, DONE, "", now)
    return following


def ended(rollout: Rollout, state: str, reason: str, now: int) -> Rollout:
    """The rollout in a last state."""
    return msgspec.structs.replace(rollout, state=state, reason=reason, ended_at=now)


def why_return(rollout: Rollout) -> str:
    """Why the old version must come back; "": it need not."""
    errors, slow, plan = rollout.errors, rollout.slow, rollout.plan
    if errors.strength >= -math.log(ALPHA_ERRORS) and errors.increase > plan.max_error_increase:
        return (
            f"{_shown(errors.total.new_hits, errors.total.new_calls)} of version {rollout.new}'s calls failed, and "
            f"{_shown(errors.total.old_hits, errors.total.old_calls)} of version {rollout.old}'s"
        )
    if slow.strength >= -math.log(ALPHA_SLOW) and slow.increase > 0:
        return (
            f"{_shown(slow.total.new_hits, slow.total.new_calls)} of version {rollout.new}'s calls took more than "
            f"{1 + plan.max_p95_increase:g} times the 95th percentile of version {rollout.old}"
        )
    return ""


def _shown(hits: int, calls: int) -> str:
    return f"{100 * hits / calls:.3g} % ({hits} of {calls})"
