"""A module's page shows how the programs of its versions differ, side by side."""

from __future__ import annotations

from pathlib import Path

from dspy_registry import Registry, RegistryWriter
from dspy_registry.explorer.one_module import one_module
from dspy_registry.integrations.dspy import publish
from dspy_registry.registry_store.program_rows import PIECE_BYTES
from tests.support.command import answer
from tests.support.compiled_programs import NAME, Qa, compiled, plain_document, publication


def test_versions_tell_what_differs_in_their_programs(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        publish(compiled(Qa(), "Be brief."), NAME, client=writer)
        publish(compiled(Qa(), "Be kind."), NAME, client=writer, in_force=True)
        large = plain_document("large", PIECE_BYTES * 20)
        writer.publish_program(publication(large, is_in_force=True), large)
    with Registry(registry_folder) as registry, registry.snapshot() as snapshot:
        newest, second, first = one_module(snapshot, NAME)["versions"]
    changes = {change["field"]: (change["before"], change["after"]) for change in second["changes"]}
    assert changes["program.qa.instructions"] == (["Be brief."], ["Be kind."])
    assert changes["program"] == (first["program"], second["program"])
    assert [change["field"] for change in newest["changes"]] == ["program"]  # too large to be compared unasked
    told = answer("history", NAME, "--path", registry_folder)["versions"]
    assert [version["changed"] for version in told] == [["program"], ["program"], None]
