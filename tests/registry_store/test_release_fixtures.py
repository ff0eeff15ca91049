"""Registries that an earlier release wrote: today's code reads the same from them, and writes to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dspy_registry import Change, ModuleInfo, Registry, RegistryWriter, StoredModule, UnknownModuleError
from dspy_registry.readers.snapshot import Snapshot
from dspy_registry.registry_store.usage import ModuleUsage
from tests.conftest import violations
from tests.support import TESTS

RELEASE = TESTS / "fixtures" / "release-0.1.0"
ANSWERS: dict[str, dict[str, Any]] = json.loads((RELEASE / "answers.json").read_text(encoding="utf-8"))
LATER_FIELDS: dict[str, Any] = {
    "stored": list[StoredModule],
    "history": dict[str, list[StoredModule]],
    "changes": list[Change],
    "usages": list[ModuleUsage],
}
SIZES = (10, 500, 50_000)


@pytest.fixture(params=sorted(ANSWERS))
def registry_of_release(request: pytest.FixtureRequest, registry_folder: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of one registry, and what the release that wrote it answered."""
    shutil.copytree(RELEASE / request.param, registry_folder)
    return registry_folder, ANSWERS[request.param]


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def with_later_fields(question: str, answer: Any) -> Any:
    """What the release answered, with the defaults of the fields that were added to it since."""
    kind = LATER_FIELDS.get(question)
    return answer if kind is None else plain(msgspec.convert(answer, kind))


def about_modules(registry: Registry, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "revision": registry.revision,
        "committed_at": registry.committed_at,
        "modules": [registry[name] for name in registry],
        "stored": [registry.describe(name) for name in registry],
        "aliases": {alias: registry.get_module(alias).name for alias in told["aliases"]},
        "history": {name: registry.history(name) for name in registry},
        "routes": {
            name: [registry.routing_recommendation(name, input_size=size, basis="observed") for size in SIZES]
            for name in registry
        },
    }


def found(registry: Registry, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "by_capability": {word: registry.find_by_capability(word) for word in told["by_capability"]},
        "by_category": {word: registry.find_by_category(word) for word in told["by_category"]},
        "find": {
            "pool": registry.find(pool_type="neural"),
            "memory": registry.find(max_memory="medium", gpu=False),
            "native": registry.find(capabilities=("reasoning",), native=True),
        },
    }


def over_time(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "changes": snapshot.changes_since(0),
        "usages": snapshot.usages(),
        "calls_lost": snapshot.calls_lost(),
    }


def test_answers_are_those_of_the_release(registry_of_release: tuple[Path, dict[str, Any]]) -> None:
    folder, told = registry_of_release
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        for part in (about_modules(registry, told), found(registry, told), over_time(snapshot)):
            for question, answer in part.items():
                assert plain(answer) == with_later_fields(question, told[question]), question
        for name in told["unknown"]:
            with pytest.raises(UnknownModuleError):
                registry.get_module(name)


def test_every_answer_is_asked_for() -> None:
    told = {"modules", "stored", "aliases", "unknown", "by_capability", "by_category", "find", "history", "changes"}
    told |= {"revision", "committed_at", "usages", "calls_lost", "routes"}
    assert [set(answers) for answers in ANSWERS.values()] == [told] * len(ANSWERS)


def test_check_is_content(registry_of_release: tuple[Path, dict[str, Any]]) -> None:
    assert violations(registry_of_release[0]) == []


def test_it_stays_writable(registry_of_release: tuple[Path, dict[str, Any]]) -> None:
    folder, told = registry_of_release
    names = [name for name, *_ in told["modules"]]
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        assert list(registry) == names
        writer.register_module(ModuleInfo(name="acme.After", category="prediction", capabilities=("reasoning",)))
        writer.unregister_module(names[0])
        writer.set_alias("afterwards", "acme.After")
        assert list(registry) == [*names[1:], "acme.After"]
        assert registry.get_module("afterwards").name == "acme.After"
        assert registry.find_by_capability("reasoning")[-1] == "acme.After"
