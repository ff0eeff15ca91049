"""Beginning and steering guarded rollouts, and moving their labels: what these stage on a draft."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import msgspec

from dspy_registry.registry_store.comparison import Block
from dspy_registry.registry_store.errors import CorruptRecordError, InvalidArgumentError, NotPossibleError
from dspy_registry.registry_store.labels import LabelUpdate, label_problems, names_the_same, shown_versions
from dspy_registry.registry_store.rollout import (
    ABORTED,
    DONE,
    OVERTAKEN,
    PAUSED,
    RUNNING,
    Plan,
    Rollout,
    decided,
    ended,
    observed,
    plan_problems,
)
from dspy_registry.registry_store.rollout_rows import load_rollout, rollout_codec, rollout_key
from dspy_registry.registry_store.validation import check_version, stored_name_problems
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.labels import set_labels

MOST_ROLLOUTS: Final = 256
"""Rows that are kept. The rollouts that ended first make room for a new one."""
BEGIN: Final = "begin"
PAUSE: Final = "pause"
RESUME: Final = "resume"
ABORT: Final = "abort"


class RolloutRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a client asks for: `action` is one of the words above. `version` and `plan` are for BEGIN only."""

    name: str
    label: str
    action: str
    version: int = 0
    plan: Plan = Plan()


class _AskedPlan(Plan, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class _AskedRequest(RolloutRequest, frozen=True, array_like=True, forbid_unknown_fields=True):
    plan: _AskedPlan = _AskedPlan()


_decode_asked = msgspec.msgpack.Decoder(_AskedRequest).decode
_decode = msgspec.msgpack.Decoder(RolloutRequest).decode


def decode_request(encoded: bytes) -> RolloutRequest:
    """A request as a client sent it, not checked. Raises what msgspec raises, also for a guard of a later release.

    A stored plan may have fields that this release does not know. One that is asked for may not: the rollout would go
    on without what its operator relies on.
    """
    _decode_asked(encoded)
    return _decode(encoded)


def checked(request: RolloutRequest) -> RolloutRequest:
    """The request, if nothing is wrong with it by itself. Raises one InvalidArgumentError naming all that is."""
    problems = [*stored_name_problems(request.name), *label_problems(request.label)]
    if request.action == BEGIN:
        check_version(request.version)
        problems += plan_problems(request.plan)
    elif request.action not in (PAUSE, RESUME, ABORT):
        problems.append(f"there is no action {request.action!r}")
    if problems:
        raise InvalidArgumentError(f"this rollout cannot be: {'; '.join(problems)}.", remedy="Nothing was changed.")
    return request


def steer(draft: Draft, request: RolloutRequest, now: int | None = None) -> None:
    """Carry out a request; `now` in milliseconds since the epoch, None: the clock's. What is so already is no error.

    Raises InvalidArgumentError, UpgradeRequiredError, and for BEGIN what `set_labels` raises.
    """
    now = time.time_ns() // 1_000_000 if now is None else now
    draft.catalog.dbs.need_format_2("rollouts")
    checked(request)
    if request.action == BEGIN:
        _begin(draft, request, now)
        return
    try:
        current = _active(draft, request.name, request.label)
    except CorruptRecordError:
        if request.action != ABORT:
            raise
        draft.rollouts[rollout_key(request.name, request.label)] = None  # which version was the old one is not known
        return
    if request.action == ABORT:
        _move(draft, current, ended(current, ABORTED, "an operator ended it", now))
    elif request.action == PAUSE:
        _keep(draft, msgspec.structs.replace(current, state=PAUSED))
    elif current.state == PAUSED:
        _keep(draft, msgspec.structs.replace(current, state=RUNNING, step_began_at=now))


def _begin(draft: Draft, request: RolloutRequest, now: int) -> None:
    name, label, new, plan = request.name, request.label, request.version, request.plan
    key = rollout_key(name, label)
    row = draft.rollout_rows().get(key)
    current = None if row is None else _read(draft, key, row)  # a damaged one gives way
    if current is not None and current.is_active:
        if (current.new, current.plan) == (new, plan):
            return
        raise NotPossibleError(
            f"{name}@{label} is under a rollout to version {current.new} already.",
            remedy=f"End it first: dspy-registry rollout abort {name} --label {label}",
        )
    if draft.module(name) is None:
        raise draft.catalog.unknown(name)
    named = draft.labels_of(name).get(label)
    versions = {} if named is None else named.versions
    if len(versions) != 1 or new in versions:
        raise _no_beginning(draft, request, versions)
    old = next(iter(versions))
    begun = Rollout(name, label, old, new, plan, now, now, by=draft.by)
    _make_room(draft)
    if plan.steps[0] == 100:
        begun = ended(begun, DONE, "", now)
    set_labels(draft, (LabelUpdate(name, label, begun.weights, old),))
    _keep(draft, begun)


def _no_beginning(draft: Draft, request: RolloutRequest, versions: Mapping[int, int]) -> NotPossibleError:
    """What to say of a label that does not name one version, and another than the new one."""
    name, label, new = request.name, request.label, request.version
    kept = draft.kept_versions(name)
    found = f"{name}@{label} names {shown_versions(versions)}" if versions else f"{name} has no label {label}"
    if new not in kept:
        found += f", and no version {new} is there (kept: {', '.join(map(str, sorted(kept, reverse=True)))})"
    old = max(kept - {new}, default=None)
    return NotPossibleError(
        f"{found}. The label must name one version, and another than {new}.",
        remedy=f"Set the label first: `dspy-registry label set {name} {label} {old or 'VERSION'}`.",
    )


def look(draft: Draft, seen: Rollout, blocks: tuple[Block, float, Block], now: int) -> Rollout | None:
    """Count what was observed and go on, in one commit with the label. None: the rollout has changed since `seen`.

    `blocks` are the failures, the rate of them that was expected, and the slow calls.
    """
    current = load(draft, seen.name, seen.label)
    if current != seen:
        return None
    following = decided(observed(current, *blocks), now)
    if not _is_in_its_place(draft, current):
        following = ended(current, OVERTAKEN, "somebody else moved the label, or removed what it names", now)
        _keep(draft, following)
    else:
        _move(draft, current, following)
    return following


def begin_step(draft: Draft, seen: Rollout, now: int) -> Rollout | None:
    """Let the step of a rollout begin at `now`. None: the rollout has changed since `seen`."""
    if load(draft, seen.name, seen.label) != seen:
        return None
    following = msgspec.structs.replace(seen, step_began_at=now)
    _keep(draft, following)
    return following


def begin_step_again(draft: Draft, now: int) -> None:
    """Let the step of every running rollout take its whole time from now on: while no daemon ran, nobody looked."""
    for key, row in draft.rollout_rows().items():
        found = _read(draft, key, row)
        if found is not None and found.state == RUNNING:
            _keep(draft, msgspec.structs.replace(found, step_began_at=now))


def load(draft: Draft, name: str, label: str) -> Rollout | None:
    """The rollout of a label, also one that has ended; None: there was none. Raises CorruptRecordError."""
    key = rollout_key(name, label)
    row = draft.rollout_rows().get(key)
    return None if row is None else load_rollout(row, key, draft.catalog.format)


def _active(draft: Draft, name: str, label: str) -> Rollout:
    current = load(draft, name, label)
    if current is None or not current.is_active:
        if current is None and draft.module(name) is None:
            raise draft.catalog.unknown(name)
        ending = "" if current is None else f" The last one is {current.state}."
        raise NotPossibleError(f"{name}@{label} is under no rollout.{ending}")
    return current


def _is_in_its_place(draft: Draft, rollout: Rollout) -> bool:
    if draft.module(rollout.name) is None:
        return False
    return names_the_same(draft.labels_of(rollout.name).get(rollout.label), rollout.weights)


def _move(draft: Draft, before: Rollout, after: Rollout) -> None:
    if before.weights != after.weights:
        set_labels(draft, (LabelUpdate(after.name, after.label, after.weights, before.weights),))
    if before != after:
        _keep(draft, after)


def _keep(draft: Draft, rollout: Rollout) -> None:
    key = rollout_key(rollout.name, rollout.label)
    draft.rollouts[key] = rollout_codec.dump(rollout, key, draft.catalog.format)


def _make_room(draft: Draft) -> None:
    rows = draft.rollout_rows()
    if len(rows) < MOST_ROLLOUTS:
        return
    found = {key: _read(draft, key, row) for key, row in rows.items()}
    over = sorted((each.ended_at if each else 0, key) for key, each in found.items() if not (each and each.is_active))
    if not over:
        raise NotPossibleError(f"{MOST_ROLLOUTS} rollouts are under way, and no registry may have more.")
    draft.rollouts[over[0][1]] = None


def _read(draft: Draft, key: bytes, row: bytes) -> Rollout | None:
    try:
        return load_rollout(row, key, draft.catalog.format)
    except CorruptRecordError:
        return None
