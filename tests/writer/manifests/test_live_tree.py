"""A running daemon follows its folder: trees that come and go, links, and whatever else happens to it."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from dspy_registry.writer.manifests.text import read_text
from tests.support import manifest_process
from tests.support.manifest_process import UNNOTICED, Served, module, serving
from tests.support.selection import each

folder = manifest_process.folder
served = manifest_process.served


# Trees


def git(folder: Path, *arguments: str) -> None:
    settings = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.full
def test_a_checkout_of_a_thousand_files_is_one_commit(served: Served, folder: Path) -> None:
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "one")
    git(folder, "checkout", "-b", "many")
    for number in range(1000):
        (folder / f"{number % 10}").mkdir(exist_ok=True)
        (folder / f"{number % 10}" / f"m{number}.toml").write_text(module(f"acme.M{number}", 1))
    git(folder, "add", ".")
    git(folder, "commit", "-m", "many")
    served.until(lambda: len(served.registry) == 6 + 1001)
    git(folder, "checkout", "main")
    served.until(lambda: len(served.registry) == 6 + 1)
    revision = served.registry.revision
    git(folder, "checkout", "many")
    served.until(lambda: len(served.registry) == 6 + 1001)
    assert served.registry.revision == revision + 1
    with served.registry.snapshot() as snapshot:
        (change,) = snapshot.changes_since(revision)
    assert len(change.modules) == 1000


def test_a_renamed_folder_is_one_commit(served: Served, folder: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    for number in range(1000):
        (new / f"m{number}.yaml").write_text(f"modules: [{{name: acme.M{number}}}]\n")
    revision = served.registry.revision
    new.rename(folder / "new")
    served.until(lambda: len(served.registry) == 6 + 1001)
    assert served.registry.revision == revision + 1
    (folder / "new").rename(folder / "renamed")
    served.until(lambda: served.registry.describe("acme.M7").provenance.source == "manifest:renamed/m7.yaml")
    assert served.registry.revision == revision + 1  # nothing that can be read is another
    (folder / "renamed").rename(tmp_path / "away")
    served.until(lambda: len(served.registry) == 6 + 1)
    assert served.registry.revision == revision + 2


def test_files_in_new_folders_are_followed(served: Served, folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "deep.json").write_text('{"modules": [{"name": "acme.Deep", "estimated_duration": 1}]}')
    served.until(lambda: served.duration("acme.Deep") == 1)
    (folder / "a" / "b" / "deep.json").write_text('{"modules": [{"name": "acme.Deep", "estimated_duration": 2}]}')
    served.until(lambda: served.duration("acme.Deep") == 2)
    shutil.rmtree(folder / "a")
    served.until(lambda: "acme.Deep" not in served.registry)
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "deep.json").write_text('{"modules": [{"name": "acme.Deep", "estimated_duration": 3}]}')
    served.until(lambda: served.duration("acme.Deep") == 3)


def test_a_folder_that_has_gone_changes_nothing(served: Served, folder: Path, tmp_path: Path) -> None:
    """An unmounted volume is not a decision to unregister everything."""
    folder.rename(tmp_path / "away")
    served.until(lambda: served.errors())
    assert (served.errors()[0]["file"], served.errors()[0]["field"]) == ("", "")
    assert served.duration("acme.First") == 1
    (tmp_path / "away" / "first.toml").write_text(module("acme.First", 2))
    (tmp_path / "away").rename(folder)
    served.until(lambda: served.duration("acme.First") == 2)
    assert served.errors() == []


# Links


def config_map(folder: Path, version: str, files: dict[str, str]) -> None:
    """As the kubelet does: a folder for the new version, and one link swapped over."""
    data = folder / f"..{version}"
    data.mkdir()
    for name, text in files.items():
        (data / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    old = (folder / "..data").readlink() if (folder / "..data").is_symlink() else None
    (folder / "..data_tmp").symlink_to(f"..{version}")
    (folder / "..data_tmp").replace(folder / "..data")
    for link in folder.iterdir():
        if link.is_symlink() and link.name not in files and not link.name.startswith("."):
            link.unlink()
    if old is not None:
        shutil.rmtree(folder / old)


def test_a_config_map_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    config_map(folder, "2026_01", {"a.toml": module("acme.A", 1), "b.toml": module("acme.B", 1)})
    with serving(tmp_path / "registry", folder) as served:
        assert (served.duration("acme.A"), served.duration("acme.B")) == (1, 1)
        assert served.registry.describe("acme.A").provenance.source == "manifest:a.toml"
        revision = served.registry.revision
        config_map(folder, "2026_02", {"a.toml": module("acme.A", 2), "b.toml": module("acme.B", 2)})
        served.until(lambda: served.duration("acme.A") == 2)
        assert served.duration("acme.B") == 2
        assert served.registry.revision == revision + 1
        config_map(folder, "2026_03", {"a.toml": module("acme.A", 3)})
        served.until(lambda: served.duration("acme.A") == 3)
        served.until(lambda: "acme.B" not in served.registry)
        assert served.errors() == []


def test_a_linked_folder_outside_is_followed(served: Served, folder: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        (tmp_path / f"v{version}").mkdir()
        (tmp_path / f"v{version}" / "team.toml").write_text(module("acme.Team", version))
    (folder / "team").symlink_to(tmp_path / "v1")
    served.until(lambda: served.duration("acme.Team") == 1)
    (tmp_path / "v1" / "team.toml").write_text(module("acme.Team", 11))
    served.until(lambda: served.duration("acme.Team") == 11)
    (folder / ".swap").symlink_to(tmp_path / "v2")
    (folder / ".swap").replace(folder / "team")
    served.until(lambda: served.duration("acme.Team") == 2)
    (tmp_path / "v2" / "team.toml").write_text(module("acme.Team", 22))
    served.until(lambda: served.duration("acme.Team") == 22)
    assert served.registry.describe("acme.Team").provenance.source == "manifest:team/team.toml"


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    for version in (1, 2):
        (tmp_path / f"v{version}").mkdir()
        (tmp_path / f"v{version}" / "a.toml").write_text(module("acme.A", version))
    current = tmp_path / "current"
    current.symlink_to("v1")
    with serving(tmp_path / "registry", current) as served:
        assert served.duration("acme.A") == 1
        (tmp_path / ".swap").symlink_to("v2")
        (tmp_path / ".swap").replace(current)
        served.until(lambda: served.duration("acme.A") == 2)


def test_a_link_to_one_file_elsewhere_is_followed(served: Served, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "shared.toml"
    target.write_text(module("acme.Shared", 1))
    (folder / "shared.toml").symlink_to(target)
    served.until(lambda: served.duration("acme.Shared") == 1)
    target.write_text(module("acme.Shared", 2))
    served.until(lambda: served.duration("acme.Shared") == 2)


# Anything


class Meddler:
    """Changes a folder in every way there is; each module has one file, whose number is in its name."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._number = 0

    def meddle(self) -> None:
        act = self._random.choice(
            [self._new, self._new, self._save, self._save, self._replace, self._move, self._remove]
        )
        act()
        if self._random.random() < 0.1:
            time.sleep(self._random.random() / 20)

    def _files(self) -> list[Path]:
        return [path for path in sorted(self._folder.rglob("*.toml")) if not path.is_symlink()]

    def _any(self) -> Path | None:
        files = self._files()
        return self._random.choice(files) if files else None

    def _text(self, file: Path) -> str:
        return module(f"acme.{file.stem}", self._random.randrange(1000))

    def _new(self) -> None:
        self._number += 1
        place = self._folder / self._random.choice(["", "a", "a/b", "c"])
        place.mkdir(parents=True, exist_ok=True)
        file = place / f"M{self._number}.toml"
        file.write_text(self._text(file))

    def _save(self) -> None:
        if file := self._any():
            text = self._text(file)
            with file.open("w") as opened:
                opened.write(text[: len(text) // 2])
                opened.flush()
                opened.write(text[len(text) // 2 :])

    def _replace(self) -> None:
        if file := self._any():
            file.with_suffix(".tmp").write_text(self._text(file))
            file.with_suffix(".tmp").replace(file)

    def _move(self) -> None:
        if folders := [path for path in self._folder.iterdir() if path.is_dir()]:
            self._number += 1
            self._random.choice(folders).rename(self._folder / f"d{self._number}")

    def _remove(self) -> None:
        if file := self._any():
            if file.parent != self._folder and self._random.random() < 0.1:
                shutil.rmtree(file.parent)
            else:
                file.unlink()


@pytest.mark.parametrize("seed", each(2, range(4)))
def test_whatever_happens_to_the_folder_the_end_is_what_it_says(served: Served, folder: Path, seed: int) -> None:
    meddler = Meddler(folder, seed)
    for _ in range(300):
        meddler.meddle()
    files = sorted(folder.rglob("*.toml"))
    said = {}
    for file in files:
        for entry in read_text(file.read_text(), ".toml").data["modules"]:
            said[entry["name"]] = (entry["estimated_duration"], f"manifest:{file.relative_to(folder)}")

    def seen() -> dict[str, tuple[int, str]]:
        with served.registry.snapshot() as snapshot:
            found = [snapshot.describe(name) for name in snapshot]
        return {
            one.info.name: (one.info.estimated_duration, one.provenance.source)
            for one in found
            if one.provenance.source != "core"
        }

    served.until(lambda: seen() == said)
    served.until(lambda: served.errors() == [])


# Without notices


def test_changes_are_looked_for_where_none_is_noticed(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path / "registry", folder, before=UNNOTICED) as served:
        (folder / "first.toml").write_text(module("acme.First", 2))
        served.until(lambda: served.duration("acme.First") == 2)
        (folder / "second.toml").write_text(module("acme.Second", 1))
        served.until(lambda: served.duration("acme.Second") == 1)
        (folder / "second.toml").unlink()
        served.until(lambda: "acme.Second" not in served.registry)
        assert served.log().count("no watches left") == 1


def test_a_lock_that_git_left_behind_holds_nothing_up_for_good(tmp_path: Path, folder: Path) -> None:
    """The daemon waits for it once, for as long as a checkout may take."""
    (folder / ".git").mkdir()
    (folder / ".git" / "index.lock").touch()
    watching = "dspy_registry.writer.manifests.folder_watch"
    brief = f"import {watching}\n{watching}._PATIENCE_WITH_MANY = 1.0\n"
    with serving(tmp_path / "registry", folder, before=brief) as served:
        assert served.duration("acme.First") == 1
        (folder / "first.toml").write_text(module("acme.First", 2))
        served.until(lambda: served.duration("acme.First") == 2)
