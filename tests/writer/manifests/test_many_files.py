"""Twelve thousand manifests: those that a folder may hold come in force as one commit, those beyond are told."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dspy_registry.writer.manifests.folder_scan import MAX_FILES
from tests.support import manifest_process
from tests.support.manifest_process import Served, module, serving

folder = manifest_process.folder

pytestmark = [pytest.mark.stress, pytest.mark.timeout(1800)]

ALL = 12_000
CORE = 6
PATIENT = 600.0
"""Seconds: a limit that no test is about, for a daemon that reads ten thousand files on a busy machine."""


def fill(folder: Path, numbers: range, duration: int) -> None:
    """A manifest for each number, a thousand in each folder."""
    for number in numbers:
        within = folder / f"{number // 1000:02}"
        within.mkdir(parents=True, exist_ok=True)
        (within / f"m{number}.toml").write_text(module(f"acme.M{number}", duration))


def count(served: Served) -> int:
    """How many modules the folder has declared."""
    return len(served.registry) - CORE


def until(served: Served, condition: Callable[[], object]) -> None:
    served.until(condition, PATIENT)


def swap(link: Path, target: Path) -> None:
    """Let the link lead elsewhere, in one step, as a deployment does."""
    new = link.with_name(".new")
    new.symlink_to(target)
    new.rename(link)


def test_twelve_thousand_files_in_two_folders(tmp_path: Path, folder: Path) -> None:
    (folder / "first.toml").unlink()
    fill(tmp_path / "one", range(MAX_FILES), 1)
    fill(tmp_path / "other", range(MAX_FILES), 2)
    fill(tmp_path / "beyond", range(MAX_FILES, ALL), 1)
    with serving(tmp_path / "registry", folder) as served:
        before = served.registry.revision
        swap(folder / "current", tmp_path / "one")
        until(served, lambda: count(served) == MAX_FILES)
        assert served.registry.revision == before + 1
        assert served.status()["errors"] == []

        swap(folder / "current", tmp_path / "other")
        until(served, lambda: served.duration(f"acme.M{MAX_FILES - 1}") == 2)
        assert served.registry.revision == before + 2  # all of them, in one step
        assert {served.duration(f"acme.M{number}") for number in range(MAX_FILES)} == {2}

        swap(folder / "more", tmp_path / "beyond")
        until(served, lambda: served.status()["errors"])
        (error,) = served.status()["errors"]
        assert str(MAX_FILES) in error["message"]
        assert count(served) == MAX_FILES  # nothing was changed
        assert served.registry.revision == before + 2

        swap(folder / "current", tmp_path / "beyond")  # now both lead to one folder, whose files count once
        until(served, lambda: count(served) == ALL - MAX_FILES)
        assert served.status()["errors"] == []

        (folder / "more").unlink()
        swap(folder / "current", tmp_path / "one")
        until(served, lambda: count(served) == MAX_FILES and served.duration("acme.M0") == 1)
        assert not served.resolves(f"acme.M{MAX_FILES}")


def test_all_twelve_thousand_modules_in_fewer_files(tmp_path: Path, folder: Path) -> None:
    """What is bounded is the number of files: a file may declare many modules."""
    new = tmp_path / "new"
    new.mkdir()
    for number in range(ALL // 2):
        pair = module(f"acme.A{number}", 1) + module(f"acme.B{number}", 1)
        (new / f"m{number}.toml").write_text(pair)
    with serving(tmp_path / "registry", folder) as served:
        before = served.registry.revision
        new.rename(folder / "new")
        until(served, lambda: count(served) == ALL + 1)
        assert served.registry.revision == before + 1


def mounted(source: Path, place: Path) -> bool:
    return subprocess.run(["mount", "--bind", source, place], capture_output=True).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_mounts_come_and_go(tmp_path: Path, folder: Path) -> None:
    fill(tmp_path / "volume", range(MAX_FILES - 1), 7)
    place = folder / "volume"
    place.mkdir()
    with serving(tmp_path / "registry", folder) as served:
        if not mounted(tmp_path / "volume", place):
            pytest.skip("this container may not mount")
        try:
            until(served, lambda: count(served) == MAX_FILES)
            assert served.duration("acme.M0") == 7
            fill(tmp_path / "volume", range(1), 8)
            until(served, lambda: served.duration("acme.M0") == 8)
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)
        until(served, lambda: count(served) == 1)
        assert served.resolves("acme.First")
