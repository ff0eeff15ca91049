"""A folder of manifests with one module each. Files are saved, and branches checked out, as people do it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

BRANCHES: Final = {"one": 1_001, "two": 1_002}
"""The git branches, and the duration (ms) that each declares for every module."""


class Tree:
    """A folder with `files` manifests, of the modules `acme.M0`, `acme.M1` and so on. Their duration is 0."""

    def __init__(self, folder: Path, files: int) -> None:
        self.folder = folder
        self.files = files
        self.first, self.last = "acme.M0", f"acme.M{files - 1}"
        self.fill(0)

    def fill(self, duration: int) -> None:
        """Write every file again, in place."""
        for number in range(self.files):
            in_place(self.file(number), self.text(number, duration))

    def file(self, number: int) -> Path:
        """The path of the manifest of a module."""
        return self.folder / f"m{number}.toml"

    def text(self, number: int, duration: int) -> str:
        """The text of the manifest of a module."""
        return f'[[modules]]\nname = "acme.M{number}"\ncapabilities = ["reasoning"]\nestimated_duration = {duration}\n'

    def keep_branches(self) -> None:
        """Make the folder a git repository. Every file differs between the branches."""
        self._git("init", "--quiet")
        for branch, duration in BRANCHES.items():
            self._git("checkout", "--quiet", "-b", branch)
            self.fill(duration)
            self._git("add", ".")
            self._git("commit", "--quiet", "-m", branch)

    def check_out(self, branch: str) -> None:
        """Check out a branch; git replaces every file."""
        self._git("checkout", "--quiet", branch)

    def _git(self, *arguments: str) -> None:
        command = ["git", "-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost", *arguments]
        # Hooks, signing and other settings of the user must not be measured.
        settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        subprocess.run(command, cwd=self.folder, check=True, env={**os.environ, **settings})


def in_place(file: Path, text: str) -> None:
    """Save as some editors do: truncate the file and write it."""
    file.write_text(text, encoding="utf-8")


def renamed_over(file: Path, text: str) -> None:
    """Save as other editors do: write a new file and rename it to the old name."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


SAVES: Final[dict[str, Callable[[Path, str], None]]] = {"in place": in_place, "renamed over": renamed_over}
