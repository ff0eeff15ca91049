"""Power loss: what a process wrote and synced is recorded, and every disk that a power loss may leave is opened."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_registry import ModuleInfo, RegistryWriter
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.check.checker import check
from dspy_registry.registry_store.layers import Layer
from dspy_registry.writer import failpoints
from dspy_registry.writer.restore import restore
from tests.stress.apart import asked
from tests.stress.crash_states import MODES, SUBSET, TORN, Point, build, points
from tests.stress.faults import Case, Fault, Plan
from tests.stress.oracle import Contents, contents, differs, is_absent, recovers
from tests.stress.recording import Event, Marks, can_record, record
from tests.support.usage_helpers import batches, merge

ALIASES = ("first", "second")
Step = tuple[Contents, int]  # what the registry holds after it, and its revision


@dataclass
class Scenario:
    """`prepare` fills a folder, `work` is recorded in it and returns its steps, `judge` looks at what is left."""

    prepare: Callable[[Path], None]
    work: Callable[[Path, Marks, int], list[Step]]
    judge: Callable[[Path, list[Step], int], list[str]]
    revision_file: str


# Creation, and every kind of commit


def _nothing(_: Path) -> None:
    pass


def _commits(room: Path, marks: Marks, seed: int) -> list[Step]:
    folder = room / "registry"
    steps: list[Step] = [({}, 0)]

    def note(writer: RegistryWriter) -> None:
        marks.acknowledged(len(steps))
        steps.append((contents(folder, ALIASES), writer.revision))

    failpoints.reach = marks.stores
    with RegistryWriter(folder) as writer:
        note(writer)
        for change in _changes(random.Random(seed)):
            change(writer)
            note(writer)
    with RegistryWriter(folder) as writer:  # once more: another revision file
        note(writer)
        writer.register_module(ModuleInfo("a.Last"))
        note(writer)
    return steps


def _changes(chance: random.Random) -> Iterator[Callable[[RegistryWriter], object]]:
    large = ModuleInfo("a.Large", metadata={"text": "large" * 3000})
    many = [ModuleInfo(f"b.M{n}", capabilities=("x", f"c{n % 7}"), estimated_duration=n) for n in range(60)]
    yield lambda writer: writer.register_module(ModuleInfo("a.One", capabilities=("x",)))
    yield lambda writer: writer.register_modules(many)
    yield lambda writer: writer.register_module(large)
    yield lambda writer: writer.set_alias("first", "a.One")
    yield lambda writer: merge(writer, batches([("a.One", 5.0), ("dspy.Predict", 7.0)]))
    yield lambda writer: writer.store.committer.commit(
        lambda draft: draft.declare("a.Layered", Layer("manifest:b.toml", {"category": "mine"}))
    )
    yield lambda writer: writer.set_implications({"x": ("y",)})
    yield lambda writer: writer.unregister_module("a.Large")
    for number in range(12):
        name = f"b.M{chance.randrange(60)}"
        yield lambda writer, name=name, number=number: writer.register_module(ModuleInfo(name, category=f"c{number}"))
        if number % 4 == 0:
            yield lambda writer, name=name: writer.set_alias("second", name)
            yield lambda writer, name=name: merge(writer, batches([(name, 3.0)]))


def _recovered(room: Path, steps: list[Step], acknowledged: int) -> list[str]:
    if acknowledged == 0:
        return recovers(room / "registry", [steps[1][0]], 1, ALIASES, readable=[{}, steps[1][0]])
    allowed = [step[0] for step in steps[acknowledged : acknowledged + 2]]
    return recovers(room / "registry", allowed, steps[acknowledged][1], ALIASES)


# Backup


def _full(folder: Path, mark: str) -> None:
    with RegistryWriter(folder) as writer:
        writer.register_modules([ModuleInfo(f"{mark}.M{n}", capabilities=("x",)) for n in range(40)])
        writer.set_alias("first", f"{mark}.M1")
        merge(writer, batches([(f"{mark}.M1", 5.0)]))


def _prepare_backup(room: Path) -> None:
    _full(room / "registry", "a")


def _backup(room: Path, marks: Marks, _: int) -> list[Step]:
    backup(room / "backups" / "monday", room / "registry")
    marks.acknowledged(1)
    return [({}, 0), (contents(room / "backups" / "monday", ALIASES), 1)]


def _whole_or_absent(room: Path, steps: list[Step], acknowledged: int) -> list[str]:
    target = room / "backups" / "monday"
    if is_absent(target):
        return ["the backup is gone, though it was reported"] if acknowledged else []
    found = contents(target, ALIASES)
    problems = [] if found == steps[1][0] else [f"half a backup: {differs(found, [steps[1][0]])}"]
    return problems + [f"check: {violation}" for violation in check(target)]


# Restore


def _prepare_restore(room: Path) -> None:
    _full(room / "registry", "a")
    backup(room / "monday", room / "registry")
    with RegistryWriter(room / "registry") as writer:
        for number in range(9):
            writer.register_module(ModuleInfo("a.Later", estimated_duration=number))


def _restore(room: Path, marks: Marks, _: int) -> list[Step]:
    former = contents(room / "registry", ALIASES)
    failpoints.reach = marks.stores
    restored = restore(room / "monday", room / "registry")
    marks.acknowledged(1)
    return [(former, 0), (contents(room / "registry", ALIASES), restored.revision)]


def _former_or_restored(room: Path, steps: list[Step], acknowledged: int) -> list[str]:
    allowed = [step[0] for step in steps[acknowledged:]]
    return recovers(room / "registry", allowed, steps[acknowledged][1], ALIASES)


# Upgrade: for as long as there is a command for it, and a registry of the release before to upgrade


def _old_registry() -> Path | None:
    from dspy_registry.cli.program import COMMANDS
    from tests.support import TESTS

    found = sorted((TESTS / "fixtures" / "release-0.1.0").rglob("data.mdb"))
    return found[0].parent if "upgrade" in COMMANDS and found else None


def _prepare_upgrade(room: Path) -> None:
    old = _old_registry()
    assert old is not None
    shutil.copytree(old, room / "registry")


def _upgrade(room: Path, marks: Marks, _: int) -> list[Step]:
    from dspy_registry.cli.program import main

    former = contents(room / "registry", ALIASES)
    failpoints.reach = marks.stores
    arguments = ["upgrade", "--path", str(room / "registry"), "--backup", str(room / "before"), "--yes"]
    assert main(arguments, standalone_mode=False) in (0, None)
    marks.acknowledged(1)
    return [(former, 0), (contents(room / "registry", ALIASES), 0)]


SCENARIOS = {
    "commits": Scenario(_nothing, _commits, _recovered, "registry/revision"),
    "backup": Scenario(_prepare_backup, _backup, _whole_or_absent, "registry/revision"),
    "restore": Scenario(_prepare_restore, _restore, _former_or_restored, "registry/revision"),
    "upgrade": Scenario(_prepare_upgrade, _upgrade, _former_or_restored, "registry/revision"),
}
_OF_A_HUNDRED = {"commits": 70, "backup": 10, "restore": 10, "upgrade": 10}


@dataclass
class Recorded:
    scenario: Scenario
    points: list[Point]
    steps: list[Step]

    def case(self, plan: Plan, key: str, number: int) -> Case:
        """Each point in each mode first, in a shuffled order; after that at random."""
        chance = plan.chance(key)
        order = [(point, mode) for point in range(len(self.points)) for mode in MODES]
        random.Random(plan.seed).shuffle(order)
        at, mode = order[number] if number < len(order) else (chance.randrange(len(self.points)), "")
        point = self.points[at]
        room = plan.folder("state")
        room.mkdir()
        mode = mode or chance.choice((SUBSET, TORN, TORN, MODES[-1]))
        build(point, mode, chance, room)
        problems, wrong = asked(lambda: self.scenario.judge(room, self.steps, point.acknowledged))
        told = [wrong] if wrong else problems
        where = f"(moment {at} of {len(self.points)}, {mode}, step {point.acknowledged} acknowledged)"
        return Case(key, tuple(f"{problem} {where}" for problem in told), f"states of {key.partition('/')[0]}, {mode}")


def recorded(
    scenario: Scenario, place: Path, seed: int, *, alter: Callable[[list[Event]], list[Event]] = list
) -> Recorded:
    """Play a scenario once. `alter` is for those who try this suite out: what would be if something were not done."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    asked(lambda: scenario.prepare(place))
    before = {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else None
        for path in sorted(place.rglob("*"))
        if path.is_file() or path.is_dir()
    }

    def work() -> Any:
        return scenario.work(place, Marks(place, place / scenario.revision_file), seed)

    events, steps = record(place, work)
    return Recorded(scenario, points(alter(events), before), [(dict(step[0]), step[1]) for step in steps])


def _tries(plan: Plan) -> Iterator[Case]:
    if not can_record():
        yield Case("all", skipped="strace cannot trace here")
        return
    played: dict[str, Recorded] = {}
    for name, scenario in SCENARIOS.items():
        if name == "upgrade" and _old_registry() is None:
            yield Case(name, skipped="there is no upgrade to try")
        elif plan.only is None or plan.only.startswith(f"{name}/"):
            played[name] = recorded(scenario, plan.room / name, plan.seed)
    if plan.only is not None:
        name, _, number = plan.only.partition("/")
        yield played[name].case(plan, plan.only, int(number))
        return
    numbers = dict.fromkeys(played, 0)
    while True:
        for name in played:
            for _ in range(_OF_A_HUNDRED[name]):
                yield played[name].case(plan, f"{name}/{numbers[name]}", numbers[name])
                numbers[name] += 1


FAULT = Fault(
    "power_loss",
    "writes and syncs recorded; prefixes, subsets, torn sectors, lagging names",
    "states",
    10_000,
    100,
    _tries,
)
