"""What the files of a running daemon's folder say is live, however they are saved, and their errors are told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from dspy_registry import ModuleInfo
from dspy_registry.writer.manifests.attach import validate_tree
from tests.support import manifest_process
from tests.support.manifest_process import Served, module, serving

folder = manifest_process.folder
served = manifest_process.served


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
        assert [(error["file"], error["line"]) for error in served.errors()] == [("first.toml", None)]
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
    assert "manifest first.toml: no errors now" in served.log()


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


def test_a_text_that_is_slow_to_read_holds_nothing_up(served: Served, folder: Path) -> None:
    """The daemon must also end when it is asked to, which `serving` checks."""
    (folder / "bad.toml").write_text("a." * 50_000 + "a = 1\n")
    (folder / "long.toml").symlink_to("x" * 300)
    (folder / "good.toml").write_text(module("acme.Good", 2))
    served.until(lambda: served.duration("acme.Good") == 2)
    assert [error["file"] for error in served.errors()] == ["bad.toml", "long.toml"]


FAILING = """
from pathlib import Path
import dspy_registry.writer.manifests.folder as folder
from dspy_registry.registry_store.errors import StoreError
real = folder.ManifestFolder.read
def read(self):
    if (self.root / ".broken").exists():
        raise StoreError("the folder is on a bad disk.")
    return real(self)
folder.ManifestFolder.read = read
"""


def test_a_failure_of_the_whole_folder_is_in_the_status_until_it_is_over(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path / "registry", folder, before=FAILING) as served:
        assert served.status()["error"] == ""
        (folder / ".broken").touch()
        (folder / "second.toml").write_text(module("acme.Second", 1))
        served.until(lambda: "bad disk" in served.status()["error"])
        assert not served.resolves("acme.Second")
        (folder / ".broken").unlink()
        (folder / "third.toml").write_text(module("acme.Third", 1))
        served.until(lambda: served.resolves("acme.Second"))
        served.until(lambda: served.status()["error"] == "")


def test_overrides_and_what_is_away_are_told(served: Served, folder: Path) -> None:
    served.change("register_module", ModuleInfo("acme.First", estimated_duration=9))
    served.until(lambda: served.status()["overrides"] == ["acme.First"])
    (report,) = [validate_tree(folder, served.path)]
    assert (report.overrides, report.errors) == (("acme.First",), ())
    (folder / "first.toml").write_text(module("acme.First", 2))
    served.until_read()
    assert served.duration("acme.First") == 9
    served.change("release", "acme.First")
    assert served.duration("acme.First") == 2
    served.until(lambda: served.status()["overrides"] == [])
    served.change("unregister_module", "acme.First")
    served.until(lambda: served.status()["away"] == ["acme.First"])
    (folder / "first.toml").write_text(module("acme.First", 3))
    served.until(lambda: served.duration("acme.First") == 3)
    served.until(lambda: served.status()["away"] == [])


def test_the_daemon_ends_although_a_file_is_still_being_read(served: Served, folder: Path) -> None:
    """`serving` asks it to end, and waits less long than the daemon would for the process that reads."""
    served.until(lambda: parser_of(served))
    os.kill(parser_of(served), signal.SIGSTOP)
    (folder / "first.toml").write_text(module("acme.First", 2))
    time.sleep(0.3)  # by then the file is most likely being read; if it is not, the test is only weaker
    assert served.duration("acme.First") == 1


def parser_of(served: Served) -> int:
    """The process id of the daemon's parser. 0: there is none."""
    pid = served.daemon_pid()
    children = Path(f"/proc/{pid}/task/{pid}/children")
    threads = Path(f"/proc/{pid}/task").iterdir() if children.exists() else ()
    found = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    return found[0] if found else 0
