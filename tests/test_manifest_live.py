"""A running daemon follows its folder, however it is changed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from manifest_process import UNNOTICED, Served, module, serving

from registry_store import ModuleInfo
from writer.manifests.text import read_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "first.toml").write_text(module("acme.First", 1))
    return folder


@pytest.fixture
def served(tmp_path: Path, folder: Path) -> Iterator[Served]:
    with serving(tmp_path / "registry", folder) as served:
        assert served.duration("acme.First") == 1
        yield served


# Ways of saving


def test_a_file_written_in_place_is_live(served: Served, folder: Path) -> None:
    (folder / "first.toml").write_text(module("acme.First", 2))
    served.until(lambda: served.duration("acme.First") == 2)
    with (folder / "first.toml").open("a") as file:
        file.write(module("acme.Second", 3))
    served.until(lambda: served.duration("acme.Second") == 3)
    assert served.registry.describe("acme.Second").provenance.source == "manifest:first.toml"


def test_a_file_renamed_over_is_live(served: Served, folder: Path) -> None:
    (folder / ".first.toml.tmp").write_text(module("acme.First", 2))
    (folder / ".first.toml.tmp").replace(folder / "first.toml")
    served.until(lambda: served.duration("acme.First") == 2)


def test_an_editor_that_moves_the_old_file_away_is_followed(served: Served, folder: Path) -> None:
    """As vim does: a probe file, a swap file, the old file renamed, the new one written in its place."""
    (folder / "4913").touch()
    (folder / "4913").unlink()
    (folder / ".first.toml.swp").write_bytes(b"b0VIM")
    (folder / "first.toml").rename(folder / "first.toml~")
    (folder / "first.toml").write_text(module("acme.First", 2))
    (folder / "first.toml~").unlink()
    (folder / ".first.toml.swp").unlink()
    served.until(lambda: served.duration("acme.First") == 2)
    assert served.errors() == []


def test_files_of_editors_declare_nothing(served: Served, folder: Path) -> None:
    for name in ("second.toml~", ".second.toml.swp", "#second.toml#", ".#second.toml", "second.toml.bak", "4913"):
        (folder / name).write_text(module("acme.Second", 1))
    served.until_read()
    assert served.duration("acme.Second") == -1
    assert served.errors() == []


def test_a_file_that_is_still_being_written_changes_nothing(served: Served, folder: Path) -> None:
    """Its first half would be a sound manifest, in which a module has gone."""
    (folder / "first.toml").write_text(module("acme.First", 1) + module("acme.Second", 1))
    served.until(lambda: served.duration("acme.Second") == 1)
    seen = []
    with (folder / "first.toml").open("w") as file:
        file.write(module("acme.First", 2))
        file.flush()
        os.fsync(file.fileno())
        served.until(lambda: served.errors())
        assert "is being written" in served.errors()[0]["message"]
        seen = [served.duration("acme.First"), served.duration("acme.Second")]
        file.write(module("acme.Second", 2))
    assert seen == [1, 1]
    served.until(lambda: served.duration("acme.Second") == 2)
    served.until(lambda: served.errors() == [])
    assert served.duration("acme.First") == 2
    assert served.registry.describe("acme.Second").provenance.version == 2


def test_an_empty_file_is_taken_for_one_being_saved(served: Served, folder: Path) -> None:
    (folder / "first.toml").write_text("")
    served.until(lambda: served.errors())
    assert "is empty" in served.errors()[0]["message"]
    assert served.duration("acme.First") == 1
    (folder / "first.toml").write_text("# nothing any more\n")
    served.until(lambda: "acme.First" not in served.registry)
    assert served.errors() == []


# Trees


def git(folder: Path, *arguments: str) -> None:
    settings = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True)


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
    assert served.errors()[0]["message"] == "the folder cannot be read: No such file or directory"
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


@pytest.mark.parametrize("seed", range(4))
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
    brief = "import writer.manifests.watch\nwriter.manifests.watch._PATIENCE_WITH_MANY = 1.0\n"
    with serving(tmp_path / "registry", folder, before=brief) as served:
        assert served.duration("acme.First") == 1
        (folder / "first.toml").write_text(module("acme.First", 2))
        served.until(lambda: served.duration("acme.First") == 2)


# Errors


def test_a_broken_file_keeps_what_it_declared_last(served: Served, folder: Path) -> None:
    revision = served.registry.revision
    (folder / "first.toml").write_text('[[modules]]\nname = "acme.First"\nestimated_duration = -5\ncolour = "red"\n')
    served.until(lambda: served.errors())
    assert [(error["file"], error["line"], error["field"]) for error in served.errors()] == [
        ("first.toml", 4, "modules[0].colour"),
        ("first.toml", 3, "modules[0].estimated_duration"),
    ]
    assert "manifest first.toml:3: modules[0].estimated_duration: -5 ms, allowed are" in served.log()
    (folder / "first.toml").write_text('[[modules]\nname = "acme.First"\n')
    served.until(lambda: [error["line"] for error in served.errors()] == [1])
    (folder / "second.toml").write_text(module("acme.Second", 1))
    served.until(lambda: "acme.Second" in served.registry)
    assert (served.duration("acme.First"), served.registry.revision) == (1, revision + 1)
    (folder / "first.toml").write_text(module("acme.First", 2))
    served.until(lambda: served.duration("acme.First") == 2)
    assert served.errors() == []
    assert "manifest first.toml: no errors any more" in served.log()


def test_two_files_declaring_one_name_are_both_named(served: Served, folder: Path) -> None:
    (folder / "other.yaml").write_text("modules:\n- name: acme.Other\n- name: acme.First\n  estimated_duration: 9\n")
    served.until(lambda: len(served.errors()) == 2)
    first, other = served.errors()
    assert (first["file"], first["line"], first["field"]) == ("first.toml", 2, "modules[0].name")
    assert (other["file"], other["line"], other["field"]) == ("other.yaml", 3, "modules[1].name")
    for error in (first, other):
        assert "'acme.First' is declared by " in error["message"]
        assert "first.toml" in error["message"]
        assert "other.yaml" in error["message"]
    assert served.duration("acme.First") == 1
    assert "acme.Other" not in served.registry
    (folder / "first.toml").unlink()
    served.until(lambda: served.duration("acme.First") == 9)
    assert "acme.Other" in served.registry
    assert served.errors() == []


def test_removing_a_file_unregisters_what_it_alone_declared(served: Served, folder: Path) -> None:
    (folder / "predict.toml").write_text(
        module("dspy.Predict", 77) + module("acme.Extra", 1) + '[aliases]\nquick = "dspy.Predict"\n'
    )
    served.until(lambda: served.duration("dspy.Predict") == 77)
    assert served.registry.get_module("quick").name == "dspy.Predict"
    (folder / "predict.toml").unlink()
    served.until(lambda: "acme.Extra" not in served.registry)
    assert served.duration("dspy.Predict") == 1000
    assert served.registry.get("quick") is None


def test_a_manifests_alias_comes_back_with_the_module_it_means(served: Served, folder: Path) -> None:
    served.change("register_module", ModuleInfo("al.T"))
    (folder / "first.toml").write_text(module("acme.First", 2) + '[aliases]\nxx = "al.T"\n')
    served.until(lambda: served.duration("acme.First") == 2)
    assert served.registry.get_module("xx").name == "al.T"
    served.change("unregister_module", "al.T")
    served.until(served.errors)
    (error,) = served.errors()
    assert (error["file"], error["field"]) == ("first.toml", "aliases.xx")
    served.change("register_module", ModuleInfo("al.T"))
    served.until(lambda: not served.errors())
    assert served.registry.get_module("xx").name == "al.T"


def test_a_manifests_alias_survives_a_module_that_is_gone_for_a_moment(served: Served, folder: Path) -> None:
    served.change("register_module", ModuleInfo("al.T"))
    (folder / "first.toml").write_text(module("acme.First", 2) + '[aliases]\nxx = "al.T"\n')
    served.until(lambda: served.duration("acme.First") == 2)
    for _ in range(3):
        served.change("unregister_module", "al.T")
        served.change("register_module", ModuleInfo("al.T"))
        served.until(lambda: served.resolves("xx") and not served.errors())


# Restart


def test_a_restart_writes_only_differences(tmp_path: Path, folder: Path) -> None:
    (folder / "more.yaml").write_text(
        "modules: [{name: acme.More, metadata: {limit: 1.5, tags: [a]}}]\naliases: {more: acme.More}\n"
        "implications: {tool_use: [reasoning]}\ndefaults: [{match: 'dspy.*', pool_type: optimizer}]\n"
    )
    with serving(tmp_path / "registry", folder) as served:
        assert served.errors() == []
        revision = served.registry.revision
    with serving(tmp_path / "registry", folder) as served:
        assert served.registry.revision == revision
    (folder / "first.toml").write_text(module("acme.First", 2))
    with serving(tmp_path / "registry", folder) as served:
        assert served.registry.revision == revision + 1
        assert served.duration("acme.First") == 2


def test_what_a_broken_file_declared_last_survives_a_restart(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path / "registry", folder) as served:
        revision = served.registry.revision
    (folder / "first.toml").write_text("[[modules]]\nname = 5\n")
    (folder / "thief.toml").write_text(module("acme.First", 5))
    with serving(tmp_path / "registry", folder) as served:
        assert (served.duration("acme.First"), served.registry.revision) == (1, revision)
        assert {error["file"] for error in served.errors()} == {"first.toml", "thief.toml"}
