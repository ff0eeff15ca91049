"""The public face: what `dspy_registry` offers is what the committed list says, and costs nothing until it is used."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dspy_registry
from tests.support import TESTS

LISTED = (TESTS / "fixtures" / "face.txt").read_text(encoding="utf-8").split()


def promised_homes() -> dict[str, str]:
    """Each name that a type checker sees, and the module that it says the name is from."""
    tree = ast.parse(Path(dspy_registry.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_the_face_is_the_committed_list() -> None:
    assert sorted(dspy_registry.__all__) == LISTED
    assert len(set(LISTED)) == len(LISTED)


def test_type_checkers_see_the_same_names() -> None:
    assert sorted(promised_homes()) == LISTED


@pytest.mark.parametrize("name", LISTED)
def test_a_name_is_the_object_of_its_home(name: str) -> None:
    home = importlib.import_module(promised_homes()[name])
    expected = importlib.import_module(f"{home.__name__}.errors") if name == "errors" else getattr(home, name)
    assert getattr(dspy_registry, name) is expected
    assert name == "errors" or expected.__module__ == home.__name__


def test_dir_has_every_name() -> None:
    assert set(LISTED) <= set(dir(dspy_registry))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        dspy_registry.nothing_of_that_name  # noqa: B018
    assert not hasattr(dspy_registry, "serve")


def test_the_import_loads_no_other_module_of_ours() -> None:
    code = "import dspy_registry, json, sys; print(json.dumps([m for m in sys.modules if m.startswith('dspy_reg')]))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == ["dspy_registry"]


def test_every_error_but_those_of_a_listed_kind_is_listed() -> None:
    errors = dspy_registry.errors
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    unlisted = [each for each in found if each.__module__ == errors.__name__ and each.__name__ not in LISTED]
    assert {each.__base__.__name__ for each in unlisted} == {"InvalidArgumentError"}


@pytest.mark.parametrize("name", ["dspy", "fastapi", "celery"])
def test_an_integration_says_what_is_public(name: str) -> None:
    pytest.importorskip(name)
    integration = importlib.import_module(f"dspy_registry.integrations.{name}")
    assert all(hasattr(integration, each) for each in integration.__all__)
