"""Every order of steps of processes that share one cell, with processors that keep stores to themselves for a while.

The steps are those of `Lease` and `lease_cells`, written again as a model: a process that keeps the cell begins without
a lock, one that does not takes it under the lock, and any of them may die between two steps. A store goes into a buffer
of its process first. The buffer reaches memory at any later time, at a barrier, and when a lock is taken or released.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import pytest

IDLE, CLAIMING, BUSY = 0, 1, 2
NOBODY = -1
OWNER = "owner"


@dataclass(frozen=True)
class Way:
    """How the protocol is done. The defaults are how it is done; the rest must be found to fail."""

    has_barrier: bool = True
    marks: bool = True  # the former owner stays in the word, marked, until it is known to be idle
    looks_again: bool = True  # the owner is loaded after CLAIMING was stored, not before


@dataclass(frozen=True)
class Process:
    """`at` is its next step. `former` is the owner that it loaded, `calls` how many it still makes."""

    at: str
    calls: int
    former: int = NOBODY
    buffer: tuple[tuple[object, object], ...] = ()
    is_alive: bool = True
    in_call: bool = False


@dataclass(frozen=True)
class State:
    """Memory: the owner and whether it is marked, and each process's slot. `lock` is who has it."""

    owner: tuple[int, bool]
    slots: tuple[int, ...]
    processes: tuple[Process, ...]
    lock: int = NOBODY

    def with_process(self, who: int, **changes: object) -> State:
        process = replace(self.processes[who], **changes)  # type: ignore[arg-type]
        return replace(self, processes=(*self.processes[:who], process, *self.processes[who + 1 :]))

    def flushed(self, who: int, count: int | None = None) -> State:
        """The oldest stores of a process reach memory."""
        buffer = self.processes[who].buffer
        done = buffer if count is None else buffer[:count]
        state = self.with_process(who, buffer=buffer[len(done) :])
        for where, value in done:
            if where == OWNER:
                state = replace(state, owner=value)
            else:
                state = replace(state, slots=(*state.slots[:where], value, *state.slots[where + 1 :]))
        return state

    def stored(self, who: int, where: object, value: object, at: str, **changes: object) -> State:
        buffer = (*self.processes[who].buffer, (where, value))
        return self.with_process(who, buffer=buffer, at=at, **changes)

    def loaded(self, who: int, where: object) -> object:
        """A process sees its own stores at once."""
        for place, value in reversed(self.processes[who].buffer):
            if place == where:
                return value
        return self.owner if where == OWNER else self.slots[where]  # type: ignore[index]


def steps(state: State, way: Way) -> Iterator[State]:
    """The states that any process can make of this one."""
    for who, process in enumerate(state.processes):
        if process.buffer:
            yield state.flushed(who, 1)
        if process.is_alive and process.at != "end":
            yield STEPS[process.at](state, who, way)
        if process.is_alive:
            yield died(state, who)


def died(state: State, who: int) -> State:
    state = state.flushed(who).with_process(who, is_alive=False, in_call=False)
    return replace(state, lock=NOBODY) if state.lock == who else state


# A process that keeps the cell, or believes so


def claim(state: State, who: int, way: Way) -> State:
    if way.looks_again:
        return state.stored(who, who, CLAIMING, "look")
    return state.with_process(who, at="go on" if state.loaded(who, OWNER) == (who, False) else "lock")


def look(state: State, who: int, way: Way) -> State:
    return state.with_process(who, at="go on" if state.loaded(who, OWNER) == (who, False) else "give up")


def go_on(state: State, who: int, way: Way) -> State:
    return state.stored(who, who, BUSY, "call", in_call=True)


def give_up(state: State, who: int, way: Way) -> State:
    return state.stored(who, who, IDLE, "lock")


def call(state: State, who: int, way: Way) -> State:
    left = state.processes[who].calls - 1
    return state.stored(who, who, IDLE, "claim" if left else "end", in_call=False, calls=left)


# A process that takes the cell under its lock


def lock(state: State, who: int, way: Way) -> State:
    if state.lock != NOBODY:
        return state.with_process(who, at="end")  # refused
    return replace(state.flushed(who), lock=who).with_process(who, at="owner")


def owner(state: State, who: int, way: Way) -> State:
    seen = state.loaded(who, OWNER)
    assert isinstance(seen, tuple)
    return state.with_process(who, at="begin" if seen[0] in (NOBODY, who) else "mark", former=seen[0])


def mark(state: State, who: int, way: Way) -> State:
    marked = (state.processes[who].former, True)
    return state.stored(who, OWNER, marked if way.marks else (who, False), "barrier")


def barrier(state: State, who: int, way: Way) -> State:
    for each in range(len(state.processes) if way.has_barrier else 0):
        state = state.flushed(each)
    return state.with_process(who, at="slot")


def slot(state: State, who: int, way: Way) -> State:
    former = state.processes[who].former
    is_idle = state.loaded(who, former) == IDLE or not state.processes[former].is_alive
    return state.with_process(who, at="begin" if is_idle else "restore")


def restore(state: State, who: int, way: Way) -> State:
    return state.stored(who, OWNER, (state.processes[who].former, False), "refused")


def begin(state: State, who: int, way: Way) -> State:
    return state.stored(who, who, BUSY, "own")


def own(state: State, who: int, way: Way) -> State:
    return state.stored(who, OWNER, (who, False), "unlock", in_call=True)


def unlock(state: State, who: int, way: Way) -> State:
    return replace(state.flushed(who), lock=NOBODY).with_process(who, at="call")


def refused(state: State, who: int, way: Way) -> State:
    return replace(state.flushed(who), lock=NOBODY).with_process(who, at="end")


STEPS = {
    "claim": claim,
    "look": look,
    "go on": go_on,
    "give up": give_up,
    "call": call,
    "lock": lock,
    "owner": owner,
    "mark": mark,
    "barrier": barrier,
    "slot": slot,
    "restore": restore,
    "begin": begin,
    "own": own,
    "unlock": unlock,
    "refused": refused,
}


# All orders


def all_states(begin: State, way: Way) -> set[State]:
    found, new = {begin}, [begin]
    while new:
        for state in steps(new.pop(), way):
            if state not in found:
                found.add(state)
                new.append(state)
    return found


def beginning(*calls: int) -> State:
    """The first process keeps the cell and calls in it. The others need it."""
    processes = (Process("claim", calls[0]), *(Process("lock", count) for count in calls[1:]))
    return State((0, False), (IDLE,) * len(calls), processes)


LONG = (pytest.mark.full, pytest.mark.timeout(900))
MANY = pytest.mark.parametrize("calls", [(3, 2), (1, 1, 1), pytest.param((2, 1, 1), marks=LONG)])


@cache
def states_of(calls: tuple[int, ...], way: Way) -> set[State]:
    """Kept: two tests look at the same states, and there are many."""
    return all_states(beginning(*calls), way)


def most_in_call(states: set[State]) -> int:
    return max(sum(process.in_call for process in state.processes) for state in states)


def is_begun_by(state: State, who: int) -> bool:
    """Whether this process can begin, if it alone runs and a try of each kind is made anew."""
    for each in range(len(state.processes)):
        state = state.flushed(each)
    state = state.with_process(who, at="lock", calls=1)
    while state.processes[who].at not in ("call", "end"):
        state = STEPS[state.processes[who].at](state, who, Way())
    return state.processes[who].in_call


@MANY
def test_never_two_calls_in_one_cell(calls: tuple[int, ...]) -> None:
    states = states_of(calls, Way())
    assert len(states) > 500
    assert most_in_call(states) == 1


@MANY
def test_a_cell_without_a_call_can_be_begun_in_by_everybody_who_lives(calls: tuple[int, ...]) -> None:
    """Nothing leaks, wherever the others died; and a cell that is only kept refuses nobody."""
    quiet = 0
    for state in states_of(calls, Way()):
        if all(process.at == "end" or not process.is_alive for process in state.processes):
            quiet += 1
            for who, process in enumerate(state.processes):
                assert not process.is_alive or is_begun_by(state, who)
    assert quiet > 10


@pytest.mark.parametrize(
    ("way", "calls"),
    [
        (Way(has_barrier=False), (1, 1)),
        (Way(looks_again=False), (1, 1)),
        (Way(marks=False), (1, 1, 1)),
    ],
    ids=["no barrier", "no second look", "no mark"],
)
def test_it_fails_in_any_other_way(way: Way, calls: tuple[int, ...]) -> None:
    assert most_in_call(states_of(calls, way)) > 1
