"""What every test gets: no network, and a registry of its own, looked over when the test is done."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # no test decides on a time
hypothesis.settings.load_profile("untimed")

# A job started in the background of a script ignores SIGINT, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where byte code is not kept, each of a thousand processes would compile the project again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# LiteLLM, which dspy loads, otherwise fetches its price list from the network at import.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


NEEDS_DSPY = re.compile(
    r"dspy($|\.)|dspy_registry\.integrations\.(dspy|publish|routed)$"
    r"|tests\.(support\.(compiled_programs|dspy_program)|writer\.test_(programs|repair))$"
)


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports at its top."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where dspy is not installed, leave out the files that cannot be imported without it."""
    if collection_path.suffix != ".py" or importlib.util.find_spec("dspy") is not None:
        return None
    return True if any(NEEDS_DSPY.match(name) for name in imports(collection_path)) else None


@pytest.fixture
def registry_folder(tmp_path: Path) -> Iterator[Path]:
    """Where a test may make a registry; whatever it leaves there must break no invariant."""
    folder = tmp_path / "registry"
    yield folder
    assert violations(folder) == []


@pytest.fixture
def seeded_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a new registry holding the core modules; $DSPY_REGISTRY names it too. It may be damaged."""
    from dspy_registry import RegistryWriter

    path = tmp_path / "seeded"
    with RegistryWriter(path):
        pass
    monkeypatch.setenv("DSPY_REGISTRY", str(path))
    return path


def violations(folder: Path) -> list[str]:
    """What `check` finds; nothing where there is no registry."""
    from dspy_registry.registry_store.check.checker import check

    return [str(violation) for violation in check(folder)] if (folder / "data.mdb").exists() else []
