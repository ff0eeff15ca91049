"""A reader that comes while the registry is being created."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import Registry, RegistryNotFoundError, RegistryWriter
from dspy_registry.registry_store import opening
from tests.support import ROOT
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


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: it delays the writes of LMDB")
def test_a_creation_whose_head_is_written_and_not_visible_yet_is_no_damage(registry_folder: Path) -> None:
    """LMDB writes a commit's meta page before readers may see the commit, and a sync lies between."""
    slow = ["strace", "-f", "-o", os.devnull, "-e", "inject=pwrite64:delay_exit=20000"]
    code = f"from dspy_registry import RegistryWriter; RegistryWriter({str(registry_folder)!r}).close()"
    with subprocess.Popen([*slow, sys.executable, "-c", code], cwd=ROOT) as writing:
        seen = None
        while seen is None:
            was_running = writing.poll() is None
            try:
                with Registry(registry_folder) as registry:
                    seen = registry.revision
            except RegistryNotFoundError:
                assert was_running, "the registry was never created"
    assert writing.returncode == 0
    assert seen in (0, 1)
