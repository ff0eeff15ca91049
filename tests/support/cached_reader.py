"""A writer, a reader that keeps all it was asked, and updates of single modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    """The registry's writer."""
    with RegistryWriter(registry_folder) as writer:
        yield writer


@pytest.fixture
def registry(writer: RegistryWriter, registry_folder: Path) -> Iterator[Registry]:
    """A reader whose cache holds every module and a few answers."""
    with Registry(registry_folder) as registry:
        for _ in range(3):  # a record is kept from its second read on
            for name in registry:
                registry.get_module(name)
            registry.get_module("predict")
            registry.find_by_capability("reasoning")
            registry.find(pool_type="general")
        yield registry


def is_cached(registry: Registry, name: str) -> bool:
    """Whether two reads give the very same object."""
    return registry.get_module(name) is registry.get_module(name)


def update(writer: RegistryWriter, name: str, duration: int) -> int:
    """Register one module with another duration; the revision."""
    return writer.register_module(ModuleInfo(name, estimated_duration=duration))


def update_often(writer: RegistryWriter) -> None:
    """A hundred commits: enough for a writer to notice what became of its files."""
    for number in range(100):
        update(writer, "a.Often", number)
