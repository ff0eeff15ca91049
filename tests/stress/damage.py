"""Damaged files: it is told, never adopted, and never becomes a wrong record."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.stress.apart import asked
from tests.stress.damage_bytes import PAGES, damage_data, damage_other
from tests.stress.damage_live import LIVE, live_case
from tests.stress.damage_rows import CANNOT_BE_MISSED, KINDS, damage_rows, databases
from tests.stress.damaged import Answers, answers, earlier_records, judged, make
from tests.stress.faults import Case, Fault, Plan
from tests.stress.repairs import repaired

_OTHER_FILES = ("revision", "lock.mdb", "writer.lock")
_REPAIRED_EVERY = 25
_LIVE_EVERY = 20
"""Cases with processes that read or write meanwhile take longer than the others."""


def _case(plan: Plan, key: str, base: Path, sound: Answers, names: list[str], earlier: list[str]) -> Case:
    number, chance = int(key), plan.chance(key)
    folder = plan.folder("case")
    if number % _LIVE_EVERY == 0:
        kind = LIVE[number // _LIVE_EVERY % len(LIVE)]
        return Case(key, tuple(live_case(folder, kind, chance)), f"live: {kind}")
    shutil.copytree(base, folder)
    if number % 5 in (1, 2):
        kind, name = KINDS[number // 5 % len(KINDS)], chance.choice(names)
        done, wrong = asked(lambda: damage_rows(folder, kind, name, chance))
        if wrong or not done:
            return Case(key, (wrong,) if wrong else (), "nothing to damage", tries=0)
        may_miss = kind == "row missing" and name in CANNOT_BE_MISSED
        problems, outcome = judged(folder, sound, may_miss=may_miss)
        return Case(key, tuple(f"{done}: {problem}" for problem in problems), f"{kind}: {outcome}")
    if number % 5 == 3 and number % 2:
        name = chance.choice(_OTHER_FILES)
        damage_other(folder, name, chance)
        problems, outcome = judged(folder, sound)
        return Case(key, tuple(f"{name}: {problem}" for problem in problems), f"{name}: {outcome}")
    kind = chance.choice(list(PAGES))
    damage_data(folder, kind, chance)
    if number % _REPAIRED_EVERY == _REPAIRED_EVERY - 1:
        problems, outcome = repaired(folder, base)
        return Case(key, tuple(f"data.mdb, {kind}: {problem}" for problem in problems), f"{kind}, repaired: {outcome}")
    problems, outcome = judged(folder, sound, may_end=kind != "cut", earlier=earlier)
    return Case(key, tuple(f"data.mdb, {kind}: {problem}" for problem in problems), f"{kind}: {outcome}")


def _tries(plan: Plan) -> Iterator[Case]:
    base = plan.room / "base"
    _, wrong = asked(lambda: make(base))
    assert not wrong, wrong

    def read() -> Answers:
        problems: list[str] = []
        found = answers(base, problems)
        assert not problems, problems
        return found

    sound, wrong = asked(read)
    assert not wrong, wrong
    names, wrong = asked(lambda: databases(base))
    assert not wrong, wrong
    earlier, wrong = asked(lambda: earlier_records(base))
    assert not wrong, wrong
    for key in plan.cases():
        yield _case(plan, key, base, sound, names, earlier)


FAULT = Fault(
    "damage",
    "flips; pages zeroed, exchanged, repeated; files cut, copied, replaced; rows moved or missing",
    "damages",
    3_000,
    60,
    _tries,
)
