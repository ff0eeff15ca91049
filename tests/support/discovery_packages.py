"""What the tests of discovery share."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo
from dspy_registry.writer.discovery.report import DiscoveryReport

PATIENT = 60.0
"""Seconds: a limit that no test is about."""

Packages = Callable[[dict[str, str]], Path]


@contextmanager
def importable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packages]:
    """Writes files of packages, which a discovered interpreter can then import."""
    folders: list[Path] = []

    def write(files: dict[str, str]) -> Path:
        folder = tmp_path_factory.mktemp("packages")
        for name, source in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        folders.append(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        return folder

    with pytest.MonkeyPatch.context() as patch:
        yield write


def named(report: DiscoveryReport) -> dict[str, ModuleInfo]:
    """The modules by name, each of which there must be once."""
    modules = {info.name: info for info in report.modules}
    assert len(modules) == len(report.modules)
    return modules


def reasons(report: DiscoveryReport) -> dict[str, str]:
    """Why each package or module failed, by name."""
    return {failure.package: failure.reason for failure in report.failures}
