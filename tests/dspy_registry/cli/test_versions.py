"""`history` and `rollback`: through a real daemon, and without one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dspy_registry import ConflictError, CorruptRecordError, ModuleInfo, Registry, RegistryWriter, UnknownVersionError
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.layers import Layer
from dspy_registry.writer.rollback import RolledBack, read_versions, roll_back
from tests.dspy_registry.cli.test_startup import completed
from tests.support.command import answer, daemon, refusal, run
from tests.support.raw_access import behind, flipped
from tests.writer.test_history import damage


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry that a daemon serves; $DSPY_REGISTRY names it. acme.X is at version 3."""
    path = tmp_path / "served"
    monkeypatch.setenv("DSPY_REGISTRY", str(path))
    write_versions(path)
    with daemon(path):
        yield path


@pytest.fixture
def versions(seeded_registry: Path) -> Path:
    """A registry that nobody serves. acme.X is at version 3."""
    write_versions(seeded_registry)
    return seeded_registry


def write_versions(path: Path) -> None:
    with RegistryWriter(path) as writer:
        for duration in (10, 20, 30):
            writer.register_module(ModuleInfo("acme.X", estimated_duration=duration, metadata={"d": duration}))


def durations(path: Path, name: str = "acme.X") -> list[int]:
    with Registry(path) as registry:
        return [stored.info.estimated_duration for stored in registry.history(name)]


# history


def test_history_as_a_table(versions: Path) -> None:
    done = run("history", "x")
    assert done.returncode == 0
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["VERSION", "REVISION", "UPDATED", "SOURCE", "BY", "CHANGED"]
    assert [row.split()[:2] for row in rows] == [["3", "4"], ["2", "3"], ["1", "2"]]
    assert all(" client " in row for row in rows)
    assert rows[0].endswith("  estimated_duration, metadata.d")
    assert rows[2].endswith("  -")


def test_history_as_json_can_be_registered_again(versions: Path) -> None:
    told = answer("history", "acme.X")
    assert (told["name"], told["registered"]) == ("acme.X", True)
    assert [item["provenance"]["version"] for item in told["versions"]] == [3, 2, 1]
    assert [item["changed"] for item in told["versions"]] == [["estimated_duration", "metadata.d"]] * 2 + [None]
    assert told["versions"][0]["provenance"] == answer("get", "acme.X")["provenance"]
    answer("register", "-", "--embedded", stdin=json.dumps(told["versions"][1]))
    assert durations(versions) == [20, 30, 20, 10]


def test_history_of_an_unregistered_module_says_so(versions: Path) -> None:
    answer("unregister", "acme.X", "--embedded")
    done = run("history", "acme.X")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 4)
    assert "acme.X" in done.stderr
    assert answer("history", "acme.X")["registered"] is False


def test_history_of_nothing(versions: Path) -> None:
    for command in ("history", "rollback"):
        status, error = refusal(command, "acme.Y")
        assert (status, error["type"]) == (1, "UnknownModuleError")
        assert refusal(command)[0] == 2
        status, error = refusal(command, "acme.X", "--path", versions / "none")
        assert (status, error["type"]) == (1, "RegistryNotFoundError")
    assert not (versions / "none").exists()


def test_history_shows_what_can_be_read_beside_what_is_damaged(versions: Path) -> None:
    damage(versions, layout.versioned_key("acme.X", 2))
    done = run("history", "acme.X")
    assert done.returncode == 1
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [(row[0], row[-1]) for row in rows] == [("3", "-"), ("2", "damaged"), ("1", "-")]
    assert re.search(r"^warning: .*acme\.X.* 2", done.stderr, re.MULTILINE)
    done = run("history", "acme.X", "--json")
    assert done.returncode == 1
    assert [item.get("estimated_duration") for item in json.loads(done.stdout)["versions"]] == [30, None, 10]


# rollback


def test_rollback_through_the_daemon(served: Path) -> None:
    with Registry(served) as registry:
        assert registry["acme.X"].estimated_duration == 30
        told = answer("rollback", "x")
        assert told == {"revision": 5, "name": "acme.X", "restored": 2, "version": 4}
        assert registry["acme.X"].estimated_duration == 20
        assert registry.describe("acme.X").provenance.version == 4
    done = run("rollback", "acme.X", "--to", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "acme.X is as in version 1 again: version 5, as of revision 6\n"
    assert durations(served) == [10, 20, 30, 20, 10]
    status, error = refusal("rollback", "acme.X", "--embedded")
    assert (status, error["type"]) == (1, "WriterLockedError")
    assert answer("check")["violations"] == []


def test_rollback_of_an_unregistered_module_is_its_last_version(served: Path) -> None:
    answer("unregister", "acme.X")
    assert answer("rollback", "acme.X") == {"revision": 6, "name": "acme.X", "restored": 3, "version": 4}
    assert durations(served) == [30, 30, 20, 10]


def test_rollback_without_a_daemon(versions: Path) -> None:
    status, error = refusal("rollback", "acme.X")
    assert (status, error["type"]) == (1, "WriterUnavailableError")
    assert answer("rollback", "acme.X", "--embedded")["version"] == 4
    assert durations(versions) == [20, 30, 20, 10]


def test_a_version_that_is_not_kept(versions: Path) -> None:
    status, error = refusal("rollback", "acme.X", "--to", "9", "--embedded")
    assert (status, error["type"]) == (1, "UnknownVersionError")
    assert re.search("3.*2.*1", error["remedy"])
    status, error = refusal("rollback", "dspy.Predict", "--embedded")
    assert (status, error["type"]) == (1, "UnknownVersionError")
    for wrong in ("0", "-1", "x"):
        assert refusal("rollback", "acme.X", "--to", wrong, "--embedded")[0] == 2
    with RegistryWriter(versions) as writer:
        for duration in range(100, 120):
            writer.register_module(ModuleInfo("acme.X", estimated_duration=duration))
    assert refusal("rollback", "acme.X", "--to", "1", "--embedded")[1]["type"] == "UnknownVersionError"
    assert durations(versions)[0] == 119


def test_rollback_to_what_is_in_force_makes_no_version(versions: Path) -> None:
    answer("rollback", "acme.X", "--to", "1", "--embedded")
    told = answer("rollback", "acme.X", "--to", "1", "--embedded")
    assert told == {"revision": 5, "name": "acme.X", "restored": 1, "version": 4}
    done = run("rollback", "acme.X", "--to", "4", "--embedded")
    assert done.stdout == "acme.X is as in version 4 already: version 4, as of revision 5\n"


def test_a_rollback_stands_above_what_other_sources_declare(seeded_registry: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        for category in ("one", "two"):
            layer = Layer("manifest:a.toml", {"category": category})
            writer.store.committer.commit(lambda draft, layer=layer: draft.declare("acme.M", layer))  # type: ignore[misc]
    assert answer("rollback", "acme.M", "--embedded")["restored"] == 1
    with Registry(seeded_registry) as registry:
        assert registry["acme.M"].category == "one"
        sources = [stored.provenance.source for stored in registry.history("acme.M")]
        assert sources == ["client", "manifest:a.toml", "manifest:a.toml"]
    assert answer("check")["violations"] == []


@pytest.mark.parametrize("change", ["register", "unregister"])
def test_a_change_in_between_is_a_conflict_and_stays(versions: Path, change: str) -> None:
    seen = read_versions(versions, "acme.X")
    with RegistryWriter(versions) as writer:
        if change == "register":
            writer.register_module(ModuleInfo("acme.X", estimated_duration=99))
        else:
            writer.unregister_module("acme.X")
        revision = writer.revision
        with pytest.raises(ConflictError):
            roll_back(writer, seen)
        assert writer.revision == revision
    assert durations(versions)[0] == (99 if change == "register" else 30)


def test_a_module_registered_again_in_between_is_a_conflict(versions: Path) -> None:
    answer("unregister", "acme.X", "--embedded")
    seen = read_versions(versions, "acme.X")
    with RegistryWriter(versions) as writer:
        writer.register_module(ModuleInfo("acme.X", estimated_duration=99))
        with pytest.raises(ConflictError):
            roll_back(writer, seen)


def test_rollbacks_beside_registrations_overwrite_nothing(versions: Path) -> None:
    """Every rollback that passes replaces just the version that it has seen; few enough for the history to hold all."""
    with RegistryWriter(versions) as writer, ThreadPoolExecutor(4) as pool:

        def register(duration: int) -> None:
            writer.register_module(ModuleInfo("acme.X", estimated_duration=duration))

        def restore(_: int) -> tuple[int, RolledBack] | None:
            seen = read_versions(versions, "acme.X")
            try:
                return seen.in_force, roll_back(writer, seen, 1)
            except ConflictError:
                return None

        registered = pool.map(register, range(100, 106))
        restored = [done for done in pool.map(restore, range(7)) if done is not None]
        list(registered)
    with Registry(versions) as registry:
        kept = {stored.provenance.version: stored for stored in registry.history("acme.X")}
    assert {info.info.estimated_duration for info in kept.values()} >= {10, 20, 30, *range(100, 106)}
    for before, done in restored:
        assert done.version in (before, before + 1)
        assert kept[done.version].info == kept[1].info


def test_a_damaged_version_is_not_restored_and_the_others_can_be(versions: Path) -> None:
    damage(versions, layout.versioned_key("acme.X", 2))
    status, error = refusal("rollback", "acme.X", "--embedded")
    assert (status, error["type"]) == (1, "CorruptRecordError")
    assert "version 2" in error["message"]
    assert answer("rollback", "acme.X", "--to", "1", "--embedded")["version"] == 4


def test_a_damaged_module_can_be_unregistered_and_rolled_back(versions: Path) -> None:
    with RegistryWriter(versions) as writer:
        with behind(writer) as (txn, dbs):
            txn.put(b"acme.X", flipped(txn.get(b"acme.X", None, dbs.modules), -2), db=dbs.modules)
        seen = read_versions(versions, "acme.X")
        assert (seen.in_force, [kept.version for kept in seen.kept]) == (3, [3, 2, 1])
        with pytest.raises(CorruptRecordError):
            roll_back(writer, seen)
        writer.unregister_module("acme.X")
        assert roll_back(writer, read_versions(versions, "acme.X")).restored == 2
    assert durations(versions)[0] == 20


def test_an_unknown_version_travels_and_is_a_key_error() -> None:
    import pickle

    assert "version 0" in UnknownVersionError("acme.X", 0, (3, 2)).message
    error = pickle.loads(pickle.dumps(UnknownVersionError("acme.X", 9, (3, 2))))
    assert isinstance(error, KeyError)
    assert (error.name, error.version, error.kept) == ("acme.X", 9, (3, 2))


def test_completion_offers_what_the_history_knows(versions: Path) -> None:
    answer("unregister", "acme.X", "--embedded")
    assert completed("rollback", "acme.") == completed("history", "acme.") == ["acme.X"]
    assert completed("get", "acme.") == []
    assert completed("history", "Pred") == ["dspy.Predict"]
