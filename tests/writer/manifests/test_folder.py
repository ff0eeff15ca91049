"""Walking and reading a folder of manifests: links, odd files, and what makes a reading new."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_registry.writer.manifests import folder as manifest_folder
from dspy_registry.writer.manifests import folder_scan as manifest_scan
from dspy_registry.writer.manifests.attach import validate_tree
from dspy_registry.writer.manifests.folder import ManifestFolder, read_content
from dspy_registry.writer.manifests.folder_scan import Scan, scan
from dspy_registry.writer.manifests.links import LinkedPaths, checkout_locks

SOUND = '[[modules]]\nname = "acme.A"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "manifests"
    folder.mkdir()
    return folder


def problems(found: Scan) -> dict[str, str]:
    return {file: one.problem for file, one in found.files.items()}


# Walking


def test_manifests_are_found_by_their_names(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    taken = ["a.toml", "b.yaml", "c.yml", "d.json", "deep/er/e.toml"]
    passed_over = ["a.toml~", ".a.toml.swp", "#a.toml#", "4913", "f.tml", ".hidden/g.toml", "x.schema.json", ".h.toml"]
    for name in taken + passed_over:
        (folder / name).write_text(SOUND)
    assert list(scan(folder).files) == sorted(taken)


def test_links_are_followed_and_count_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "o.toml").write_text(SOUND)
    (folder / "sub").mkdir()
    (folder / "sub" / "a.toml").write_text(SOUND)
    (folder / "again").symlink_to("sub")
    (folder / "aa.toml").symlink_to("sub/a.toml")
    (folder / "loop").symlink_to(".")
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "one.toml").symlink_to(tmp_path / "elsewhere" / "o.toml")
    found = scan(folder)
    assert problems(found) == {"out/o.toml": "", "sub/a.toml": ""}
    assert found.errors == ()


def test_what_a_link_passes_through_is_watched(folder: Path, tmp_path: Path) -> None:
    """Two links and a folder lie on the way; each may be swapped."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "a.toml").write_text(SOUND)
    (tmp_path / "current").symlink_to("v1")
    (folder / "a.toml").symlink_to(tmp_path / "current" / "a.toml")
    places = scan(folder).places
    for name in ("manifests/a.toml", "current", "v1/a.toml", "manifests/new.yaml", "manifests"):
        assert places.matter(str(tmp_path / name)), name
    for name in ("other", "v1/b.toml", "manifests/.git", "manifests/sub/x.toml"):
        assert not places.matter(str(tmp_path / name)), name
    assert {path for path, _, _ in places.watched} == {str(tmp_path), str(folder), str(tmp_path / "v1")}


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    linked = LinkedPaths()
    linked.follow(tmp_path / "a" / "x")
    assert {str(tmp_path / "a"), str(tmp_path / "b")} <= linked.names
    found = scan(tmp_path / "a")
    assert (found.unknown, found.errors[0].file) == (("",), "")


def test_real_paths_are_those_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "up").symlink_to("../x/./y")
    (tmp_path / "link").symlink_to(tmp_path / "x" / "up" / ".." / "y")
    for path in (tmp_path / "link", tmp_path / "x" / "up" / ".." / "up", Path("/"), tmp_path / "missing"):
        assert LinkedPaths().follow(path) == str(path.resolve())


def test_odd_files_are_told_and_never_opened(folder: Path) -> None:
    os.mkfifo(folder / "pipe.toml")
    (folder / "dangling.toml").symlink_to("nowhere")
    (folder / "new\nline.toml").write_text(SOUND)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.toml")).write_text(SOUND)
    long = Path(*(["d" * 100] * 3), "e.toml")
    (folder / long).parent.mkdir(parents=True)
    (folder / long).write_text(SOUND)
    assert set(problems(scan(folder))) == {
        *("pipe.toml", "dangling.toml", "new\\nline.toml", "\\udcff.toml", str(long))
    }
    assert len(validate_tree(folder).errors) == 5


def test_a_folder_that_cannot_be_read_is_unknown(folder: Path) -> None:
    (folder / "a.toml").write_text(SOUND)
    (folder / "file").write_text("")
    found = scan(folder / "file")
    assert (found.unknown, [error.file for error in found.errors]) == (("",), [""])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_unknown(folder: Path) -> None:
    (folder / "secret").mkdir(mode=0)
    try:
        found = scan(folder)
    finally:
        (folder / "secret").chmod(0o700)
    assert (found.unknown, found.errors[0].file) == (("secret",), "secret")


def test_too_many_files_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_scan, "MAX_FILES", 2)
    for name in "abc":
        (folder / f"{name}.toml").write_text(SOUND)
    found = scan(folder)
    assert (found.files, found.unknown, len(found.errors)) == ({}, ("",), 1)


# Reading


@pytest.mark.parametrize("is_written", [False, True])
def test_a_file_that_became_a_pipe_is_an_error_of_it(folder: Path, is_written: bool) -> None:
    """Its scan saw a file. A pipe has no content, or would block: neither is an empty manifest."""
    os.mkfifo(folder / "a.toml")
    writer = os.open(folder / "a.toml", os.O_RDWR) if is_written else None
    try:
        with pytest.raises(OSError, match="not a regular file"):
            read_content(folder / "a.toml")
    finally:
        if writer is not None:
            os.close(writer)


@pytest.mark.skipif(not os.access("/proc/kmsg", os.R_OK), reason="only root may read what the kernel says")
def test_a_file_whose_read_would_block_freezes_nothing(folder: Path) -> None:
    (folder / "a.toml").symlink_to("/proc/kmsg")
    (folder / "b.toml").write_text(SOUND)
    reader = ManifestFolder(folder)
    for _ in range(2):  # what it has now, then nothing
        found = reader.read().tree.files
        assert found["b.toml"].declared is not None
        assert found["a.toml"].errors
    reader.close()


def test_a_reading_is_new_when_something_differs(folder: Path) -> None:
    reader = ManifestFolder(folder)
    (folder / "a.toml").write_text(SOUND)
    assert reader.read().is_new
    assert not reader.read().is_new
    (folder / "a.toml").touch()
    assert not reader.read().is_new
    (folder / "a.toml").write_text(SOUND + "category = 'x'\n")
    assert reader.read().is_new
    (folder / "a.toml").write_text("broken")
    assert reader.read().is_new
    assert not reader.read().is_new
    (folder / "a.toml").unlink()
    assert reader.read().is_new


def test_a_file_that_looks_the_same_is_read_again_while_it_is_young(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two saves within one tick of the file system's clock may leave one signature."""
    for module in (manifest_scan, manifest_folder):
        monkeypatch.setattr(module, "signature_of", lambda found: (1, 2, 3, 4, 5))
    for young_ns, is_noticed in ((2**63, True), (0, False)):
        monkeypatch.setattr(manifest_folder, "_RACY_NS", young_ns)
        reader = ManifestFolder(folder)
        (folder / "a.toml").write_text(SOUND)
        assert reader.read().is_new
        (folder / "a.toml").write_text(SOUND.replace("acme.A", "acme.B"))
        assert reader.read().is_new is is_noticed


def test_a_file_open_for_writing_is_busy(folder: Path) -> None:
    reader = ManifestFolder(folder)
    (folder / "a.toml").write_text(SOUND)
    reader.read()
    hold = "import sys\nfile = open(sys.argv[1], 'w')\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder / "a.toml")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writing:
        assert writing.stdout is not None
        assert writing.stdout.readline() == b"\n"
        reading = reader.read()
        (error,) = reading.tree.files["a.toml"].errors
        assert (reading.is_busy, error.file) == (True, "a.toml")
        writing.communicate()
    reading = reader.read()
    assert (reading.is_busy, len(reading.tree.files["a.toml"].errors)) == (False, 1)  # it is empty


def test_a_change_during_the_reading_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.toml").write_text(SOUND)
    real = manifest_folder.read_content

    def meddled(path: Path) -> tuple[bytes, tuple[int, ...]]:
        (folder / "b.toml").write_text(SOUND)
        return real(path)

    monkeypatch.setattr(manifest_folder, "read_content", meddled)
    assert ManifestFolder(folder).read().is_busy


# Checkouts


def test_git_at_work_is_told_by_its_lock(tmp_path: Path) -> None:
    inside = tmp_path / "repository" / "deep" / "manifests"
    inside.mkdir(parents=True)
    git = tmp_path / "repository" / ".git"
    git.mkdir()
    assert checkout_locks([str(inside)]) == ()
    (git / "index.lock").touch()
    assert checkout_locks([str(inside), str(inside.parent)]) == (git / "index.lock",)


def test_git_at_work_in_a_worktree_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "tree" / ".git").write_text("gitdir: ../real\n")
    (tmp_path / "real" / "index.lock").touch()
    (lock,) = checkout_locks([str(tmp_path / "tree")])
    assert lock.resolve() == tmp_path / "real" / "index.lock"


# Entries that may not be looked at


def test_a_link_whose_target_may_not_be_looked_at_is_its_own_error(folder: Path) -> None:
    (folder / "a.toml").write_text(SOUND)
    (folder / "long.toml").symlink_to("x" * 300)
    (folder / "long").symlink_to("y" * 300)
    (folder / "round").symlink_to("round")
    (folder / "round.toml").symlink_to("round.toml")
    (folder / "nowhere").symlink_to("missing")
    (folder / "under").symlink_to("a.toml/file")
    found = scan(folder)
    assert {file for file, problem in problems(found).items() if problem} == {"long.toml", "round.toml"}
    assert sorted(found.unknown) == sorted(error.file for error in found.errors) == ["long", "round"]
    assert len(validate_tree(folder).errors) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look at everything")
def test_links_into_a_closed_folder_are_errors_of_their_own(folder: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (folder / "a.toml").write_text(SOUND)
    (folder / "b.toml").symlink_to(closed / "b.toml")
    (folder / "sub").symlink_to(closed / "sub")
    closed.chmod(0)
    try:
        found = scan(folder)
        assert checkout_locks([str(closed / "sub")]) == ()
    finally:
        closed.chmod(0o700)
    assert problems(found)["a.toml"] == ""
    assert (problems(found)["b.toml"] != "", found.unknown) == (True, ("sub",))


def test_the_ending_of_a_link_counts_and_not_that_of_its_target(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "abc123").write_text(SOUND)
    (tmp_path / "store" / "b.toml").write_text(SOUND)
    (tmp_path / "store" / "c.json").write_text(SOUND.replace("acme.A", "acme.C"))
    (folder / "a.toml").symlink_to(tmp_path / "store" / "abc123")
    (folder / "b.txt").symlink_to(tmp_path / "store" / "b.toml")
    (folder / "c.toml").symlink_to(tmp_path / "store" / "c.json")
    report = validate_tree(folder)
    assert (report.files, report.modules, report.errors) == (2, 2, ())
