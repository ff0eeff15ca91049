"""Faults that are scenes of some processes: each is played in a child of its own, again and again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.stress.apart import PATIENCE, asked
from tests.stress.faults import Case, Plan

Scene = Callable[[Path, random.Random], list[str]]


class NotHereError(Exception):
    """The machine does not allow this scene; the text says why."""


def _played(scene: Scene, folder: Path, chance: random.Random) -> tuple[list[str], str]:
    try:
        return scene(folder, chance), ""
    except NotHereError as reason:
        return [], str(reason)


def tries_of(scenes: dict[str, Scene]) -> Callable[[Plan], Iterator[Case]]:
    """All scenes in turn, each with a folder for itself."""

    def tries(plan: Plan) -> Iterator[Case]:
        names = list(scenes)
        for key in plan.cases():
            name = names[int(key) % len(names)]
            room = plan.folder(f"scene-{key}")
            room.mkdir(parents=True)
            told, wrong = asked(partial(_played, scenes[name], room / "registry", plan.chance(key)), 3 * PATIENCE)
            problems, skipped = ([wrong], "") if wrong else told
            yield Case(
                key, tuple(f"{name}: {problem}" for problem in problems), name, skipped=skipped and f"{name}: {skipped}"
            )
            plan.folder(f"scene-{key}")

    return tries
