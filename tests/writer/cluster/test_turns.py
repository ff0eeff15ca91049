"""Whose turn it is, and what is told of a change when it is not known what came of an earlier try."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from dspy_registry.registry_store.cluster_rows import Position
from dspy_registry.registry_store.errors import ClusterFullError
from dspy_registry.writer.cluster.decision import Decision
from dspy_registry.writer.cluster.engine import Engine, KeyValue, Outcome, UnknownOutcomeError
from dspy_registry.writer.cluster.keys import Keys
from dspy_registry.writer.cluster.staged import Staged
from dspy_registry.writer.cluster.turns import Turns


def test_hosts_that_were_refused_go_one_after_the_other() -> None:
    now = [100.0]
    turns = Turns("b", lambda: now[0])
    assert turns.left == 0
    for host in ("a", "c", "b"):
        turns.saw(host)
    assert turns.left == 0  # nobody was refused
    turns.refused()
    behind_itself = turns.left
    turns.saw("c")
    behind_c = turns.left
    turns.saw("a")
    assert turns.left == 0
    assert behind_itself == pytest.approx(2 * behind_c)
    assert behind_c > 0
    turns.saw("c")
    now[0] += 2 * behind_c
    assert turns.left == 0  # a had nothing to change
    turns.saw("b")
    now[0] += 1.0
    assert turns.left == 0  # and nobody was refused for long


def test_turns_last_as_long_as_other_hosts_use_theirs() -> None:
    now = [100.0]
    turns = Turns("b", lambda: now[0])
    turns.refused()
    for _ in range(10):  # without another refusal
        now[0] += 0.3
        turns.saw("a")
        turns.renew()
        turns.saw("b")
        assert turns.left > 0
    now[0] += 0.3
    turns.renew()  # nobody else has changed anything
    now[0] += 0.3
    turns.saw("b")
    assert turns.left == 0


def test_a_slow_host_makes_longer_turns_within_bounds() -> None:
    turns = Turns("b", lambda: 100.0)
    turns.refused()
    turns.saw("a")
    turns.saw("b")
    short = turns.left
    for _ in range(20):
        turns.took(5.0)
    assert short < turns.left <= 0.061


class Answers:
    """An engine whose answers to transactions are given. A real one gives these in this order by chance alone."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    async def transact(self, *_: Any, **__: Any) -> Outcome:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast("Outcome", answer)

    async def lease(self, seconds: int) -> int:
        return 1


def test_a_full_quota_after_a_lost_reply_says_nothing_of_the_change() -> None:
    keys, change = Keys("/p/", "0123456789abcdef"), b"c" * 16
    staged = Staged(Position("c", "h", 5, 5, 1), cast("Any", None), change, {b"k": b"v"}, {}, False, {}, {}, {})
    went_through = Outcome(False, 9, {keys.last_change: KeyValue(keys.last_change, change, 7)})
    engine = Answers(UnknownOutcomeError("lost"), ClusterFullError("full"), went_through)
    outcome = asyncio.run(Decision(cast("Engine", engine), keys).of(staged))
    assert (outcome.succeeded, outcome.revision) == (True, 7)
