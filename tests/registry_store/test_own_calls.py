"""What a process saw itself, before it is merged: by version, and under the version in force where none was told."""

from __future__ import annotations

from random import Random

from dspy_registry.registry_store.own_calls import IN_FORCE, MOST_KEPT, Own, OwnCalls
from dspy_registry.registry_store.recent_calls import BLOCK

NAME, SIZE = "acme.Qa", "normal"


def seen(own: OwnCalls, version: int, size: str = SIZE, *, in_force: bool = True) -> Own:
    return own.seen(NAME, version, size, in_force=in_force)


def test_a_process_that_called_nothing_saw_nothing() -> None:
    assert seen(OwnCalls(), 1) == (0, 0)


def test_own_calls_count_at_once() -> None:
    own = OwnCalls()
    own.completed(NAME, 2, SIZE, 300)
    own.timed_out(NAME, 2, SIZE, 1000)
    assert seen(own, 2) == (300, 2000)
    assert seen(own, 1) == seen(own, 2, "large") == (0, 0)
    own.completed(NAME, 2, SIZE, 400)
    assert seen(own, 2) == (400, 0)


def test_the_backoff_has_no_ceiling_of_its_own() -> None:
    own = OwnCalls()
    own.timed_out(NAME, 1, SIZE, 1e9)
    assert seen(own, 1).backoff == 2e9


def test_calls_without_a_version_are_of_the_one_in_force() -> None:
    own = OwnCalls()
    own.timed_out(NAME, IN_FORCE, SIZE, 1000)
    assert seen(own, 3) == (0, 2000)
    assert seen(own, 2, in_force=False) == (0, 0)


def test_they_are_dropped_when_another_version_is_in_force() -> None:
    own = OwnCalls()
    own.timed_out(NAME, IN_FORCE, SIZE, 1000)
    own.completed(NAME, IN_FORCE, "large", 9000)
    assert seen(own, 3).backoff == 2000
    assert seen(own, 4) == seen(own, 4, "large") == (0, 0)
    own.completed(NAME, IN_FORCE, SIZE, 50)
    assert seen(own, 4) == (50, 0)
    assert seen(own, 3) == (0, 0), "a rollback is another version too"


def test_both_count_together() -> None:
    own = OwnCalls()
    own.completed(NAME, IN_FORCE, SIZE, 100)
    own.completed(NAME, 3, SIZE, 200)
    own.timed_out(NAME, IN_FORCE, SIZE, 1000)
    assert seen(own, 3) == (200, 2000)
    assert seen(own, 3, in_force=False) == (200, 0)


def test_it_is_bounded() -> None:
    own = OwnCalls()
    for number in range(MOST_KEPT + 1):
        own.completed(f"acme.M{number}", IN_FORCE, SIZE, 100)
        assert own.seen(f"acme.M{number}", 1, SIZE, in_force=True) == (100, 0)
    assert max(len(own._recent), len(own._in_force)) <= MOST_KEPT
    assert own.seen("acme.M0", 1, SIZE, in_force=True) == (0, 0)
    assert own.seen(f"acme.M{MOST_KEPT}", 1, SIZE, in_force=True) == (100, 0)


def test_an_answer_holds_as_long_as_nothing_is_said_to_have_changed() -> None:
    chance, own = Random(14), OwnCalls()
    asked = [(version, in_force) for version in (1, 2) for in_force in (True, False)]
    kept: dict[tuple[int, bool], tuple[int, Own]] = {}
    held = 0
    for _ in range(5_000):
        version = chance.choice((IN_FORCE, 1, 2))
        if chance.random() < 0.02:
            own.timed_out(NAME, version, SIZE, chance.choice((100, 1000)))
        else:
            own.completed(NAME, version, SIZE, chance.choice((0, 50, 60, 300)))
        question = chance.choice(asked)
        changes = own.changes  # before the answer, which may assign or drop calls
        answer = seen(own, question[0], in_force=question[1])
        if kept.get(question, (-1,))[0] == changes:
            assert kept[question][1] == answer
            held += 1
        kept[question] = changes, answer
    assert held > 500


def test_a_usual_call_changes_nothing() -> None:
    own = OwnCalls()
    own.completed(NAME, 1, SIZE, 100)
    changes = own.changes
    for _ in range(10):
        own.completed(NAME, 1, SIZE, 90)
    assert own.changes == changes
    own.completed(NAME, 1, SIZE, 110)
    assert own.changes > changes


def test_a_block_that_ends_changes_nothing_where_the_longest_call_stays() -> None:
    own = OwnCalls()
    own.completed(NAME, 1, SIZE, 100)
    changes = own.changes
    for _ in range(BLOCK - 1):
        own.completed(NAME, 1, SIZE, 90)
    for milliseconds in (80, 95, 100):  # the first begins a block, the others are the longest in it
        own.completed(NAME, 1, SIZE, milliseconds)
        assert (own.changes, seen(own, 1).longest) == (changes, 100)
    for _ in range(BLOCK):
        own.completed(NAME, 1, SIZE, 90)
    assert (own.changes, seen(own, 1).longest) == (changes, 100)
    for _ in range(BLOCK):
        own.completed(NAME, 1, SIZE, 90)
    assert own.changes > changes
    assert seen(own, 1).longest == 90
