"""Costly works rest beside quick ones, and refusals of one user wait for each other. All clocks are the tests' own."""

from __future__ import annotations

import pytest

from dspy_registry.writer.daemon import pace
from dspy_registry.writer.daemon.fair_queue import FairQueue
from dspy_registry.writer.daemon.group import Work
from dspy_registry.writer.daemon.pace import BESIDE, LONGEST, REST, Pace, RefusalPace

COSTLY, QUICK = 0.004, 0.0001


class Named(Work):
    def __init__(self, user: int, client: bytes, held_bytes: int = 0) -> None:
        self.by, self.client, self.held_bytes = (user, 1), client, held_bytes

    def __repr__(self) -> str:
        return f"{self.by}{self.client!r}"


class Background(Work):
    def __init__(self, *, is_background: bool = True) -> None:
        self.is_background = is_background


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def carry_out(queue: FairQueue, clock: Clock, seconds: float) -> Work | None:
    """Take a work that takes so long."""
    work = queue.get(0)
    if work is not None:
        clock.now += seconds
        queue.charge(work, seconds)
    return work


def shares(costly: list[Named], seconds: float, quick: float | None) -> tuple[float, int]:
    """The share of the time that costly clients get, and how many of them, beside one that sends every `quick` s.

    Costly ones send again as soon as they are served.
    """
    clock = Clock()
    queue, used, begin, served = FairQueue(clock), 0.0, clock.now, set()
    for work in costly:
        queue.put(work)
    quickly = Named(1, b"quick")
    next_quick = clock.now if quick is not None else float("inf")
    while clock.now < begin + seconds:
        if clock.now >= next_quick:
            queue.put(quickly)
            next_quick = clock.now + (quick or 0.0)
        work = queue.get(0)
        taken = 0.0005 if work is None else QUICK if work is quickly else COSTLY
        clock.now += taken
        if work is not None:
            queue.charge(work, taken)
        if isinstance(work, Named) and work is not quickly:
            used += taken
            served.add(work.client)
            queue.put(work)
    return used / seconds, len(served)


@pytest.mark.parametrize("clients", [1, 8])
def test_costly_clients_of_a_user_have_a_part_of_the_time_beside_a_quick_one(clients: int) -> None:
    works = [Named(1, b"costly%d" % number) for number in range(clients)]
    share, served = shares(works, 6.0, 0.003)
    assert 0.7 / (1 + REST) < share < 1.3 / REST
    assert served == clients


def test_more_users_with_costly_clients_have_no_more_of_the_time() -> None:
    share, served = shares([Named(user, b"costly") for user in range(1, 9)], 6.0, 0.003)
    assert share < 1.5 / REST
    assert served == 1  # all have the same id: it is another client for each user


def test_who_is_alone_does_not_rest() -> None:
    assert shares([Named(1, b"a"), Named(1, b"b")], 5.0, None) == (pytest.approx(1.0, abs=0.01), 2)


def test_a_client_with_costly_and_quick_works_does_not_rest_beside_itself() -> None:
    clock = Clock()
    queue = FairQueue(clock)
    for seconds in (QUICK, COSTLY, QUICK, COSTLY) * 3:
        queue.put(Named(1, b"mixed"))
        assert carry_out(queue, clock, seconds) is not None


def test_rest_ends_when_no_other_client_is_served_any_more() -> None:
    clock = Clock()
    queue = FairQueue(clock)
    for client, seconds in ((b"quick", QUICK), (b"costly", 100.0)):
        queue.put(Named(1, client))
        assert carry_out(queue, clock, seconds) is not None
    queue.put(Named(1, b"quick"))
    assert carry_out(queue, clock, QUICK) is not None
    queue.put(Named(1, b"costly"))
    assert queue.get(0) is None
    clock.now += BESIDE
    assert queue.get(0) is not None


def test_nobody_rests_longer_than_the_bound_says() -> None:
    rest, now = Pace(), 1000.0
    rest.quick(1, b"quick", now)
    for _ in range(10):
        rest.costly(1, b"costly", 1000.0, now)
    assert rest.until(1, b"costly", now) == now + LONGEST
    rest.quick(1, b"quick", now + LONGEST)
    assert rest.until(1, b"costly", now + LONGEST) == 0.0


def test_what_is_known_of_clients_has_a_bound() -> None:
    rest = Pace()
    for number in range(20_000):
        rest.costly(number, b"costly", COSTLY, float(number))
    assert len(rest._until) <= 4097
    assert len(rest._paid) <= 2
    refusals = RefusalPace()
    for number in range(20_000):
        refusals.wait(number, float(number))
    assert len(refusals._next) <= 3


def test_an_ended_queue_lets_nobody_rest() -> None:
    clock = Clock()
    queue = FairQueue(clock)
    queue.put(Named(1, b"quick"))
    carry_out(queue, clock, QUICK)
    queue.put(Named(1, b"costly"))
    carry_out(queue, clock, COSTLY)
    queue.put(Named(1, b"costly"))
    assert queue.get(0) is None
    queue.end()
    assert queue.get(None) is not None
    assert queue.get(None) is None


def test_a_record_that_took_long_to_receive_makes_its_client_rest() -> None:
    clock = Clock()
    queue = FairQueue(clock)
    for client, size in ((b"quick", 100), (b"large", 1_000_000)):
        queue.put(Named(1, client, size))
        carry_out(queue, clock, QUICK)
    queue.put(Named(1, b"large", 1_000_000))
    assert queue.get(0) is None
    queue.put(Named(1, b"quick", 100))
    assert queue.get(0) is not None


def test_of_the_daemons_own_works_only_those_in_the_background_rest() -> None:
    clock = Clock()
    queue = FairQueue(clock)
    queue.put(Named(1, b"quick"))
    carry_out(queue, clock, QUICK)
    for work in (Background(), Background(is_background=False)):
        queue.put(work)
        assert carry_out(queue, clock, COSTLY) is work
    waits, goes = Background(), Background(is_background=False)
    queue.put(waits)
    queue.put(goes)
    assert queue.get(0) is goes
    assert queue.get(0) is None
    clock.now += COSTLY * REST
    assert queue.get(0) is waits


def test_a_costly_work_gives_way_to_the_quick_ones_of_one_group() -> None:
    queue = FairQueue(Clock())
    costly, quick = Named(1, b"costly"), Named(1, b"quick")
    for work, seconds in ((costly, COSTLY), (quick, QUICK)):
        queue.put(work)
        queue.charge(work, seconds)
    assert [queue.is_later(work) for work in (costly, quick)] == [True, False]
    queue.put_back([costly])
    assert not queue.is_later(costly)
    queue.put_back([])
    assert queue.is_later(costly)


def test_the_first_refusals_of_a_user_come_at_once_and_many_one_after_the_other() -> None:
    refusals, now = RefusalPace(), 1000.0
    assert [refusals.wait(1, now) for _ in range(pace._AT_ONCE)] == [0.0] * pace._AT_ONCE
    waits = [refusals.wait(1, now) for _ in range(100)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (pytest.approx(pace._REFUSAL), pytest.approx(LONGEST))
    assert refusals.wait(2, now) == 0.0
    assert refusals.wait(1, now + 10.0) == 0.0
