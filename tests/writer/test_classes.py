"""Which registered name a class has, by where discovery found it defined."""

from __future__ import annotations

from pathlib import Path

from dspy_registry import ModuleInfo, RegistryWriter
from dspy_registry.writer.discovery.report import DiscoveryReport
from dspy_registry.writer.draft import Draft


def found(**places: str) -> DiscoveryReport:
    """A report of modules of acme, by where each is defined."""
    modules = [
        ModuleInfo(f"acme.{name}", metadata={"discovered_from": "acme", "class": place})
        for name, place in places.items()
    ]
    return DiscoveryReport(modules=tuple(modules), probed=("acme",), looked_through=("acme",))


def name_of(writer: RegistryWriter, place: str) -> str | None:
    names: list[str | None] = []

    def look(draft: Draft) -> None:
        names.append(draft.catalog.name_of_class(place))

    writer.store.committer.commit(look)
    return names[0]


def test_a_class_has_the_name_of_the_last_discovery(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        assert name_of(writer, "acme._a.A") is None
        writer.apply_discovery(found(A="acme._a.A"))
        assert name_of(writer, "acme._a.A") == "acme.A"
        writer.apply_discovery(found(A="acme._b.A"))  # the class has moved: the index is read again
        assert (name_of(writer, "acme._a.A"), name_of(writer, "acme._b.A")) == (None, "acme.A")
        writer.register_module(ModuleInfo("acme.A"))  # a client's record says nothing of the class
        assert name_of(writer, "acme._b.A") == "acme.A"
        writer.unregister_module("acme.A")
        assert name_of(writer, "acme._b.A") is None


def test_a_class_with_two_names_has_neither(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        writer.apply_discovery(
            found(A="acme.make.<locals>.Made", B="acme.make.<locals>.Made", C="acme.one.<locals>.Made")
        )
        assert name_of(writer, "acme.make.Made") is None
        assert name_of(writer, "acme.one.Made") == "acme.C"


def test_the_index_is_kept_while_layers_do_not_change(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        writer.apply_discovery(found(A="acme._a.A"))
        assert name_of(writer, "acme._a.A") == "acme.A"
        writer.register_module(ModuleInfo("acme.Other"))
        assert writer.store.committer._classes.is_read
