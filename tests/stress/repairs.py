"""A damaged registry that is repaired: what comes out is sound, and all that is not as it was is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dspy_registry import Registry, RegistryError
from dspy_registry.registry_store.check.checker import check
from dspy_registry.writer.repair.repair import repair
from tests.stress.apart import asked
from tests.stress.oracle import complaint, contents

_ALIASES = ("cot", "seven", "eight")


def repaired(folder: Path, base: Path) -> tuple[list[str], str]:
    """The problems, and what came of it in a word. `base` is the registry as it was before it was damaged."""
    into = folder.with_name("repaired")
    shutil.rmtree(into, ignore_errors=True)
    told, wrong = asked(lambda: _repaired(folder, into, base))
    return ([wrong], "failed") if wrong else (told[0], told[1])


def _repaired(folder: Path, into: Path, base: Path) -> tuple[list[str], str]:
    before = (folder / "data.mdb").read_bytes()
    try:
        done = repair(folder, into)
    except RegistryError as error:
        problems = [wrong for wrong in [complaint(error)] if wrong]
        return problems + (["a refused repair left a folder"] if into.exists() else []), "refused"
    problems = [f"check: {violation}" for violation in check(into)]
    if (folder / "data.mdb").read_bytes() != before:
        problems.append("the damaged file was written to")
    was, found = contents(base, _ALIASES), contents(into, _ALIASES)
    if found != was and not (done.lost or done.taken):
        problems.append(f"nothing is told, and yet {[key for key in was if found.get(key) != was[key]][:4]}")
    invented = _records(into) - _records(base, past=True)
    if invented and not done.taken:
        problems.append(f"records that never were: {sorted(invented)[:2]}")
    return problems, "some is lost" if done.lost else "some is taken from elsewhere" if done.taken else "all is there"


def _records(folder: Path, *, past: bool = False) -> set[str]:
    with Registry(folder) as registry:
        found: list[Any] = [registry.describe(name) for name in registry]
        if past:
            found += [stored for name in registry for stored in registry.history(name)]
        return {repr(stored.info) for stored in found}
