"""Wheels of ours and of others, built and installed without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support import ROOT

_BACKEND = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "other-{package}"
version = "1"
[tool.hatch.build.targets.wheel]
packages = ["{package}"]
"""


def build(source: Path, out: Path, kind: str) -> Path:
    """The one file that building `kind` ("wheel" or "sdist") of `source` makes in `out`."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


def other_wheel(package: str, folder: Path) -> Path:
    """A wheel of somebody else, whose one top-level package is `package`."""
    source = folder / package
    (source / package).mkdir(parents=True)
    (source / package / "__init__.py").write_text("OWNER = 'somebody else'\n")
    (source / "pyproject.toml").write_text(_BACKEND.format(package=package))
    return build(source, folder / f"{package}-wheel", "wheel")


class Installation:
    """A new virtual environment in `folder`, which holds nothing but what is installed into it."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=100)
        self.bin = folder / "bin"
        (self.packages,) = folder.glob("lib/python3.*/site-packages")

    def pip(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=self.bin)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, wheels: Iterable[Path]) -> None:
        for wheel in wheels:
            self.pip("install", "--no-deps", "--no-index", wheel)

    def see_dependencies(self) -> None:
        """Let it import what is installed beside this interpreter, but nothing of the checkout.

        A .pth file in a folder that is named in a .pth file is not read, so an editable installation is not seen.
        """
        beside = [path for path in sys.path if path.endswith("site-packages")]
        (self.packages / "dependencies.pth").write_text("\n".join(beside) + "\n")

    def run(
        self, *command: str | Path, cwd: Path, code: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command of its `bin`; `code` is its standard input."""
        program, *arguments = map(str, command)
        return subprocess.run(
            [self.bin / program, *arguments],
            input=code,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=100,
            env={**clean_environment(), **environment},
        )

    def files(self, package: str) -> dict[str, bytes]:
        """The content of each file of a package, byte code apart."""
        found = sorted(path for path in (self.packages / package).rglob("*") if path.is_file())
        return {
            path.relative_to(self.packages).as_posix(): path.read_bytes() for path in found if path.suffix != ".pyc"
        }


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DSPY_REGISTRY")}


def committed_modules() -> set[str]:
    """Where each committed .py file of the package is in the wheel."""
    rooms = ("registry_store", "writer", "readers")
    listed = subprocess.run(
        ["git", "ls-files", "dspy_registry", *rooms], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return {
        name if name.startswith("dspy_registry/") else f"dspy_registry/{name}"
        for name in listed
        if name.endswith(".py")
    }
