"""Reads are fresh, revisions never go back, a snapshot is of one revision, a replaced registry is noticed.

The guarantees, in the words of docs/design.md: a read that starts after a write was acknowledged, in any process, sees
that write or a later one (I1); the revision word never goes back and no odd word is used for two commits (I2);
revisions never go back for any reader (I3); a snapshot sees exactly one revision (I4).

Readers in processes of their own record all they ask and hear, beside what was acknowledged before each question and
what had been started after it. Histories are checked when all is over, and saved when one is wrong.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.histories import Observation
from tests.support.schedule import Schedule, verify

FAST, SLOW_DISK, SLOW_WORD = "", "before_commit=sleep:2", "before_even_word=sleep:2"
SLOW_ALL_OVER = "before_odd_word=sleep:1,before_commit=sleep:1,before_even_word=sleep:1,before_acknowledgement=sleep:1"


def observe(folder: Path, seed: int, commits: int, caches: tuple[int, ...], failpoints: str) -> None:
    with Observation(folder, seed, commits, caches) as observation:
        while not observation.is_done:
            assert observation.let_write(min(50, commits // 2), failpoints) == 0
        observation.finish()


some = pytest.mark.parametrize("commits", [30, pytest.param(80, marks=pytest.mark.full)])


@some
@pytest.mark.parametrize("failpoints", [FAST, SLOW_DISK], ids=["fast", "slow disk"])
def test_i1_no_read_is_older_than_what_was_acknowledged_before_it(
    registry_folder: Path, failpoints: str, commits: int
) -> None:
    observe(registry_folder, 1, commits, (8192, 5), failpoints)


@some
def test_i3_no_readers_revision_goes_backwards_over_several_writers(registry_folder: Path, commits: int) -> None:
    observe(registry_folder, 3, commits, (8192, 5), SLOW_WORD)


@some
def test_i4_every_snapshot_is_of_the_one_revision_it_names(registry_folder: Path, commits: int) -> None:
    observe(registry_folder, 4, commits, (8192, 0), SLOW_ALL_OVER)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("failpoints", [FAST, SLOW_DISK, SLOW_WORD, SLOW_ALL_OVER], ids=["fast", "disk", "word", "all"])
def test_many_histories(registry_folder: Path, seed: int, failpoints: str) -> None:
    observe(registry_folder, seed, 1500, (8192, 64, 3, 0), failpoints)


def test_a_wrong_history_is_recognised() -> None:
    """The judge can convict: an answer older than what was acknowledged, newer than what was started, going back."""
    schedule = Schedule(1, 180)
    name = next(operations[0][1].name for operations in schedule.commits[1:] if operations[0][0] == "register")
    touched = [
        n
        for n, state in enumerate(schedule.states)
        if name in state.modules and state.modules[name].estimated_duration == n
    ]
    early, late = touched[0], touched[-1]
    question = ["get", name]
    assert verify(schedule.states, [[0, question, early, 180], [0, question, late, 180]]) == ""
    assert verify(schedule.states, [[0, question, late, 180], [0, question, early, 180]]).startswith("event 1")
    assert verify(schedule.states, [[late, question, early, 180]]).startswith("event 0")
    assert verify(schedule.states, [[0, question, late, late - 1]]).startswith("event 0")
    assert verify(schedule.states, [[0, ["revision", None], 5, 180], [0, ["revision", None], 4, 180]]).startswith(
        "event 1"
    )
    assert verify(schedule.states, [[0, ["list", None], ["made.Up"], 180]]).startswith("event 0")
