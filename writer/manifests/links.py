"""Following symbolic links, and finding the locks of git checkouts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_MOST_LINKS: Final = 40  # the same as in the kernel


class LinkedPaths:
    """Follows paths link by link. `names` are the links on the way and the ends of the paths."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._targets: dict[str, str] = {}

    def follow(self, path: Path) -> str:
        """The real path, as far as it exists. Notes in `names` what may change where the path leads."""
        at, passed = "/", 0
        rest = list(path.parts[:0:-1])
        while rest:
            part = rest.pop()
            if part == "..":
                at = at.rpartition("/")[0] or "/"
                continue
            at = f"{at.rstrip('/')}/{part}"
            target = self._target(at)
            if target and passed < _MOST_LINKS:
                passed += 1
                self.names.add(at)
                at = "/" if target.startswith("/") else (at.rpartition("/")[0] or "/")
                rest += [name for name in reversed(target.split("/")) if name not in ("", ".")]
        self.names.add(at)
        return at

    def _target(self, path: str) -> str:
        if path not in self._targets:
            try:
                self._targets[path] = str(Path(path).readlink())
            except OSError:
                self._targets[path] = ""
        return self._targets[path]


def checkout_locks(folders: Iterable[str]) -> tuple[Path, ...]:
    """The existing lock files of git in the checkouts around these folders: git is rewriting them."""
    locks = {git / "index.lock" for git in map(_git_folder, map(Path, folders)) if git is not None}
    return tuple(sorted(lock for lock in locks if os.path.exists(lock)))  # noqa: PTH110  # Path.exists may raise


def _git_folder(folder: Path) -> Path | None:
    """The folder of git's own files. A place that may not be looked at is passed over."""
    for place in (folder, *folder.parents):
        git = place / ".git"
        if os.path.isdir(git):  # noqa: PTH112  # Path.is_dir may raise
            return git
        try:
            named = git.read_text(encoding="utf-8")  # of a worktree or a submodule
        except (OSError, UnicodeDecodeError):
            continue
        return place / named.removeprefix("gitdir:").strip()
    return None
