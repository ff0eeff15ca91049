"""A running daemon discovers at its start, and whenever packages are installed or removed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import DiscoveryError
from dspy_registry.writer.discovery.python_environment import import_folders, installed
from tests.support.manifest_process import PATIENT, Served, serving

DSPY = """
class Module:
    pass

class Sketch(Module):
    \"\"\"A module that no core table knows.\"\"\"

    def forward(self):
        return 1
"""

PACKAGE = """
import dspy

class {name}(dspy.Module):
    '''One of acme's.'''

    def forward(self):
        return 1
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that interpreters import from, with a small dspy in it that shadows any other."""
    site = tmp_path / "site"
    (site / "dspy").mkdir(parents=True)
    (site / "dspy" / "__init__.py").write_text(DSPY)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_text("aliases: {sketcher: dspy.Sketch}\ndefaults: [{match: 'acme.*', pool_type: neural}]")
    return folder


def install(site: Path, version: str, name: str) -> None:
    """The way an installer does it: files first, what tells of them last."""
    (site / "acme").mkdir(exist_ok=True)
    (site / "acme" / "__init__.py").write_text(PACKAGE.format(name=name))
    for old in site.glob("acme-*.dist-info"):
        shutil.rmtree(old)
    (site / f"acme-{version}.dist-info").mkdir()
    (site / f"acme-{version}.dist-info" / "METADATA").write_text(f"Name: acme\nVersion: {version}\n")


def discovery(served: Served) -> dict[str, Any]:
    return served.section("discovery")


def test_what_is_installed_later_is_discovered(tmp_path: Path, site: Path, folder: Path) -> None:
    with serving(tmp_path / "registry", folder, "acme") as served:
        served.until(lambda: discovery(served)["discovered_at"])
        assert "dspy.Sketch" in served.registry
        served.until(lambda: served.errors() == [])  # the alias means something now
        assert served.registry.get_module("sketcher").name == "dspy.Sketch"
        assert [failure["package"] for failure in discovery(served)["failures"]] == ["acme"]
        install(site, "1.0", "Summarise")
        served.until(lambda: "acme.Summarise" in served.registry)
        found = served.registry.describe("acme.Summarise")
        assert (found.provenance.source, found.info.metadata["version"]) == ("discovered", "1.0")
        assert found.info.pool_type == "neural"
        install(site, "2.0", "Translate")
        served.until(lambda: "acme.Translate" in served.registry)
        assert "acme.Summarise" not in served.registry
        shutil.rmtree(site / "acme")
        shutil.rmtree(site / "acme-2.0.dist-info")
        served.until(lambda: "acme.Translate" not in served.registry)
        revision = served.registry.revision
    with serving(tmp_path / "registry", folder, "acme") as served:
        served.until(lambda: discovery(served)["discovered_at"])
        assert served.registry.revision == revision


def test_a_package_that_cannot_be_imported_is_told_and_its_modules_stay(
    tmp_path: Path, site: Path, folder: Path
) -> None:
    install(site, "1.0", "Summarise")
    with serving(tmp_path / "registry", folder, "acme") as served:
        served.until(lambda: "acme.Summarise" in served.registry)
        install(site, "1.1", "Broken(")
        served.until(lambda: discovery(served)["failures"])
        assert "acme.Summarise" in served.registry
        assert "discovery: acme: " in served.log()


def test_what_is_installed_is_told_by_what_installers_leave(site: Path) -> None:
    folders = import_folders(sys.executable, PATIENT)
    assert str(site) in folders
    before = installed(sys.executable, folders)
    assert installed(sys.executable, folders) == before
    (site / "module.py").touch()
    assert installed(sys.executable, folders) == before
    install(site, "1.0", "Summarise")
    after = installed(sys.executable, folders)
    assert after != before
    install(site, "1.0", "Summarise")
    assert installed(sys.executable, folders) != after


@pytest.mark.parametrize("python", ["/nowhere/python", "true"])
def test_what_is_no_interpreter_is_told(python: str) -> None:
    with pytest.raises(DiscoveryError, match=python):
        import_folders(python, PATIENT)
