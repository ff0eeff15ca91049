"""Modules in every combination of what can be asked for, and the three kinds of readers that answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter, Requirements
from dspy_registry.registry_store.vocabulary import LEVELS

MODULES = tuple(
    ModuleInfo(
        f"m.M{number}",
        category=("alpha", "beta")[number % 2],
        capabilities=(("a",), ("a", "b"), ("complex_reasoning",))[number % 3],
        requirements=Requirements(memory=LEVELS[number % 4], compute=LEVELS[number // 4 % 4], gpu=number % 5 == 0),
        pool_type=("general", "neural")[number // 2 % 2],
        native_available=number % 7 == 0,
    )
    for number in range(48)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of these modules, one for all tests of a file."""
    path = tmp_path_factory.mktemp("queries") / "registry"
    with RegistryWriter(path) as writer:
        writer.register_modules(MODULES)
    return path


@pytest.fixture(params=["registry", "uncached", "snapshot"])
def queries(folder: Path, request: pytest.FixtureRequest) -> Any:
    """Each kind of reader in turn."""
    with Registry(folder, cache_size=0 if request.param == "uncached" else 8192) as registry:
        if request.param == "snapshot":
            with registry.snapshot() as snapshot:
                yield snapshot
        else:
            yield registry
