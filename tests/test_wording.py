"""The wording of our errors is pinned in tests/wording.yaml and nowhere else: other tests look at types and fields.

"…" stands there for the words of other software, which nothing pins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from dspy_registry.registry_store import errors
from tests.support import wording
from tests.support.wording import Place

PINNED: dict[str, Any] = yaml.safe_load(wording.WORDING.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = wording.make_place(tmp_path_factory.mktemp("wording"))
    with found.writer, found.reader:
        yield found


def as_pinned(expected: Any, said: Any) -> None:
    assert said == expected or wording.fits(expected, said)


@pytest.mark.parametrize("name", wording.PROVOKED)
def test_an_error_says_what_is_wrong_and_what_mends_it(place: Place, name: str) -> None:
    as_pinned(PINNED["errors"].get(name), wording.error_text(name, place))


def test_what_is_wrong_with_a_module() -> None:
    as_pinned(PINNED["modules"], wording.module_problems())


@pytest.mark.parametrize("name", wording.MANIFESTS)
def test_what_is_wrong_with_a_manifest(name: str) -> None:
    as_pinned(PINNED["manifests"].get(name), wording.manifest_errors(name))


@pytest.mark.parametrize("line", wording.COMMANDS)
def test_what_the_command_line_says(place: Place, line: str) -> None:
    as_pinned(PINNED["commands"].get(line), wording.command_error(line, place))


def test_every_error_has_its_wording_pinned(place: Place) -> None:
    kinds = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RegistryError)
    }
    provoked = {type(wording.provoked(call, place)) for call in wording.PROVOKED.values()}
    assert kinds - provoked == {errors.RegistryError} - provoked
    assert PINNED["errors"].keys() == set(wording.PROVOKED)
