"""A folder of manifests, one module each, that is saved and checked out as people do it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

BRANCHES: Final = {"one": 1_001, "two": 1_002}
"""The branches of a checkout, and the duration that each declares for every module."""


class Tree:
    """So many manifests, with which `acme.M0` and the following take no time."""

    def __init__(self, folder: Path, files: int) -> None:
        self.folder = folder
        self.files = files
        self.first, self.last = "acme.M0", f"acme.M{files - 1}"
        self.fill(0)

    def fill(self, duration: int) -> None:
        """Write every file again."""
        for number in range(self.files):
            in_place(self.file(number), self.text(number, duration))

    def file(self, number: int) -> Path:
        """The manifest of a module."""
        return self.folder / f"m{number}.toml"

    def text(self, number: int, duration: int) -> str:
        """What the manifest of a module says."""
        return f'[[modules]]\nname = "acme.M{number}"\ncapabilities = ["reasoning"]\nestimated_duration = {duration}\n'

    def keep_branches(self) -> None:
        """Make it a git repository, with every file different in each of its branches."""
        self._git("init", "--quiet")
        for branch, duration in BRANCHES.items():
            self._git("checkout", "--quiet", "-b", branch)
            self.fill(duration)
            self._git("add", ".")
            self._git("commit", "--quiet", "-m", branch)

    def check_out(self, branch: str) -> None:
        """Let git replace every file."""
        self._git("checkout", "--quiet", branch)

    def _git(self, *arguments: str) -> None:
        command = ["git", "-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost", *arguments]
        # Nothing that a user has set, such as hooks or signing, is to be measured.
        settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        subprocess.run(command, cwd=self.folder, check=True, env={**os.environ, **settings})


def in_place(file: Path, text: str) -> None:
    """Truncate and write."""
    file.write_text(text, encoding="utf-8")


def renamed_over(file: Path, text: str) -> None:
    """Write beside it, and put that in its place."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


SAVES: Final[dict[str, Callable[[Path, str], None]]] = {"in place": in_place, "renamed over": renamed_over}
