"""A reader that comes while the registry is being created."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dspy_registry import Registry, RegistryWriter
from dspy_registry.registry_store import opening
from tests.support.processes import child, say


def finish(folder: str) -> None:
    with RegistryWriter(folder) as writer:
        say(writer.revision)


def test_a_creation_that_ends_while_a_reader_opens_is_no_damage(
    registry_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry_folder.mkdir()
    opening.create(registry_folder)
    first_look = opening._format_of
    revisions: list[int] = []

    def look_then_let_it_end(env: Any, folder: Path) -> int | None:
        found = first_look(env, folder)
        if not revisions:
            assert found is None
            with child(__name__, "finish", registry_folder) as writing:
                revisions.append(writing.hear())
                assert writing.close() == 0
        return found

    monkeypatch.setattr(opening, "_format_of", look_then_let_it_end)
    with Registry(registry_folder) as registry:
        assert registry.revision == revisions[0]
