"""Damaged files, missing rights, scarce address space: each is an error that names it and says what to do.

What cannot be had: LMDB checks none of its own pages, so that damage to them may end a process that reads them, or hide
a key. `check` is what finds that (tests/test_check.py); here is what a reader and a writer say.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    CorruptRecordError,
    ModuleInfo,
    Registry,
    RegistryError,
    RegistryNotFoundError,
    RegistryWriter,
    StoreError,
    StorePermissionError,
)
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.check.checker import check, check_apart
from dspy_registry.registry_store.opening import create
from tests.support import ROOT
from tests.support.processes import child, run, say
from tests.support.selection import each

WORD = "findable_in_the_file"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "damaged"
    with RegistryWriter(path) as writer:
        writer.register_modules([ModuleInfo(f"a.M{i}", metadata={"text": f"{WORD}_{i:03}" * 20}) for i in range(60)])
        writer.register_module(ModuleInfo("a.Large", metadata={"text": "large" * 4000, "word": f"{WORD}_large"}))
    return path


def patch(folder: Path, text: str, *, old: str, new: str) -> int:
    """Change some bytes of the data file wherever a text stands in it; how often it did."""
    data = (folder / layout.DATA_FILE).read_bytes()
    assert len(old) == len(new)
    count = data.count(text.encode())
    changed = data.replace(text.encode(), text.replace(old, new).encode())
    assert changed != data
    (folder / layout.DATA_FILE).write_bytes(changed)
    return count


# Flipped bits


@pytest.mark.parametrize(("text", "name"), [(f"{WORD}_007", "a.M7"), (f"{WORD}_large", "a.Large")])
def test_i10_a_record_with_flipped_bits_is_named_and_the_others_are_read(folder: Path, text: str, name: str) -> None:
    assert patch(folder, text, old="findable", new="findeble")
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        for queries in (registry, registry, registry, snapshot):
            for ask in (queries.get_module, queries.__getitem__, queries.get_pool_type, queries.describe, queries.get):
                with pytest.raises(CorruptRecordError, match=name):
                    ask(name)
        assert registry.get_module("a.M8").metadata["text"].startswith(f"{WORD}_008")
        assert len(registry.find()) == 67  # indexes are other bytes
    assert {(found.invariant, found.where) for found in check(folder)} == {("I10", f"modules/{name}")}


def test_i10_a_posting_with_flipped_bits_is_an_error_and_never_a_wrong_answer(folder: Path) -> None:
    data = bytearray((folder / layout.DATA_FILE).read_bytes())
    for key in re.finditer(rb"category:unknown\0..", bytes(data), re.DOTALL):  # also where a page was copied
        data[key.end() + 9] ^= 0x40
    (folder / layout.DATA_FILE).write_bytes(data)
    with Registry(folder) as registry:
        for _ in range(3):
            with pytest.raises(CorruptRecordError):
                registry.find_by_category("unknown")
        assert registry.find_by_category("reasoning")


def test_i10_a_writer_meets_damage_with_an_error_and_changes_nothing(folder: Path) -> None:
    patch(folder, f"{WORD}_007", old="findable", new="findeble")
    with RegistryWriter(folder) as writer:
        revision = writer.revision
        for change in (
            lambda: writer.register_module(ModuleInfo("a.M7")),
            lambda: writer.register_modules([ModuleInfo("a.New"), ModuleInfo("a.M7")]),
        ):
            with pytest.raises(CorruptRecordError, match=r"a\.M7"):
                change()
        assert writer.revision == revision
        assert writer.register_module(ModuleInfo("a.M8")) == revision + 1


@pytest.mark.parametrize("versions", [1, 3])
def test_i10_a_damaged_module_is_mended_by_unregistering_it(folder: Path, versions: int) -> None:
    with RegistryWriter(folder) as writer:
        for version in range(versions - 1):
            writer.register_module(ModuleInfo("a.M7", capabilities=("x",), metadata={"text": f"{WORD}_v{version}"}))
        writer.set_alias("seven", "a.M7")
    patch(folder, f"{WORD}_007" if versions == 1 else f"{WORD}_v1", old="findable", new="findeble")
    assert [found.invariant for found in check(folder)] == ["I10"]
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        assert "a.M7" in registry.find()
        writer.unregister_module("a.M7")
        assert list(check(folder)) == []
        assert "a.M7" not in registry.find() + registry.find_by_capability("x")
        for asked in ("a.M7", "M7", "m7", "seven"):
            assert not registry.has_native(asked)
            assert asked not in registry
        writer.register_module(ModuleInfo("a.M7", capabilities=("y",)))
        assert registry.find_by_capability("y") == ("a.M7",)
        assert registry.describe("m7").provenance.version == versions
    assert list(check(folder)) == []


def read_everything(folder: str) -> None:
    """All that can be asked, each with its answer or the error of ours; another error ends this process badly."""
    answers: dict[str, Any] = {}

    def ask(label: str, question: Any) -> None:
        try:
            answers[label] = repr(question())
        except RegistryError as error:
            answers[label] = f"error {type(error).__name__}"

    with Registry(folder) as registry:
        for number in range(60):
            ask(f"a.M{number}", lambda name=f"a.M{number}": registry.get_module(name))
        for name in ("dspy.ReAct", "predict", "a.Large"):
            ask(name, lambda name=name: registry.get_module(name))
        ask("reasoning", lambda: registry.find_by_capability("reasoning"))
        ask("find", lambda: registry.find(category="unknown", gpu=False))
        ask("list", lambda: list(registry))
    say(answers)


def read_apart(folder: Path) -> dict[str, str]:
    """What a process of its own reads; nothing when that killed it."""
    with child(__name__, "read_everything", folder) as process:
        said = process.heard()
        status = process.wait()
    assert status <= 0, "an error that is not ours"
    return said[0] if said else {}


def damages(data: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Pages of zeros and of noise, and single flipped bits, here and there in what is in use."""
    chance = random.Random(seed)
    pages = len(data) // 4096
    for number in range(count):
        damaged = bytearray(data)
        page = chance.randrange(2, pages)
        kind = ("bit", "bit", "bit", "zeros", "noise")[number % 5]
        if kind == "bit":
            at = chance.randrange(2 * 4096, len(data))
            damaged[at] ^= 1 << chance.randrange(8)
        else:
            filling = bytes(4096) if kind == "zeros" else chance.randbytes(4096)
            damaged[page * 4096 : (page + 1) * 4096] = filling
        yield f"{number} {kind}", bytes(damaged)


def survey(folder: Path, seed: int, count: int) -> None:
    """No damage makes a wrong record: each answer is right, missing, or an error of ours; and `check` knows."""
    sound = read_apart(folder)
    assert not any(answer.startswith("error") for answer in sound.values())
    data = (folder / layout.DATA_FILE).read_bytes()
    for label, damaged in damages(data, seed, count):
        (folder / layout.DATA_FILE).write_bytes(damaged)
        read = read_apart(folder)
        wrong = {key: answer for key, answer in read.items() if answer != sound[key]}
        infos = {key for key, answer in wrong.items() if key.startswith("a.") and answer.startswith("ModuleInfo")}
        assert infos == set(), label
        try:
            found = list(check_apart(folder))
        except StoreError:  # nothing to be seen of it at all
            continue
        assert found or not wrong, (label, wrong)


@pytest.mark.parametrize(("seed", "count"), [(2, 5), pytest.param(1, 10, marks=pytest.mark.full)])
def test_i10_no_damage_makes_a_wrong_record(folder: Path, seed: int, count: int) -> None:
    survey(folder, seed, count)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(4))
def test_much_damage(folder: Path, seed: int) -> None:
    survey(folder, seed, 150)


# Files that are not what they should be


def test_a_registry_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(RegistryNotFoundError, match=str(path)) as caught:
            Registry(path)
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.remedy
    for opened in (Registry, RegistryWriter):
        with pytest.raises(StoreError, match="file"):
            opened(tmp_path / "file")


@pytest.mark.parametrize("content", [b"not LMDB at all" * 1000, bytes(20480), b"x"], ids=["text", "zeros", "short"])
def test_a_data_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / layout.DATA_FILE).write_bytes(content)
    for opened in (Registry, RegistryWriter):
        with pytest.raises(StoreError, match=layout.DATA_FILE):
            opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [layout.DATA_FILE]
    assert (tmp_path / layout.DATA_FILE).read_bytes() == content


def test_a_registry_that_was_never_completed_is_named_and_completed_by_the_next_writer(registry_folder: Path) -> None:
    registry_folder.mkdir()
    create(registry_folder)
    with pytest.raises(RegistryNotFoundError):
        Registry(registry_folder)
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry:
        assert len(registry) == 6


def test_data_and_revision_file_of_two_registries_are_told_apart(folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(tmp_path / "other"):
        pass
    shutil.copy(tmp_path / "other" / layout.REVISION_FILE, folder / layout.REVISION_FILE)
    with pytest.raises(StoreError, match=str(folder)):
        Registry(folder)
    with RegistryWriter(folder), Registry(folder) as registry:
        assert len(registry) == 67


# Rights


def as_nobody(folder: str, action: str) -> None:
    """Without the rights of root, whom nothing is forbidden: given up once all is imported."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        if action == "write":
            RegistryWriter(folder).close()
        else:
            with Registry(folder) as registry, registry.snapshot() as snapshot:
                say(len(snapshot))
    except RegistryError as error:
        say([type(error).__name__, isinstance(error, PermissionError), bool(error.message and error.remedy)])


@pytest.fixture
def reachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry where another user can get at it; pytest's own folders are its user's alone."""
    base = Path(subprocess.run(["mktemp", "-d"], capture_output=True, check=True, text=True).stdout.strip())
    base.chmod(0o755)
    with RegistryWriter(base / "registry"):
        pass
    yield base / "registry"
    for path in (base / "registry", *(base / "registry").iterdir()):
        path.chmod(0o755)
    shutil.rmtree(base)


@pytest.mark.parametrize(
    ("forbidden", "action"),
    [
        (".", "read"),
        (layout.DATA_FILE, "read"),
        (layout.LOCK_FILE, "read"),
        (layout.REVISION_FILE, "read"),
        (".", "write"),
        (layout.WRITER_LOCK_FILE, "write"),
    ],
)
def test_missing_rights_are_named_with_what_is_needed(reachable: Path, forbidden: str, action: str) -> None:
    for path in reachable.iterdir():
        path.chmod(0o777)
    reachable.chmod(0o775)  # for its group, not for everybody: that would be refused whatever else is forbidden
    if os.geteuid() == 0:
        os.chown(reachable, -1, 65534)
    assert run(__name__, "as_nobody", reachable, "read") == [6]
    (reachable / forbidden).chmod(0o000 if forbidden != layout.LOCK_FILE else 0o444)
    ((kind, is_permission_error, is_whole),) = run(__name__, "as_nobody", reachable, action)
    assert (kind, is_permission_error, is_whole) == ("StorePermissionError", True, True)
    assert issubclass(StorePermissionError, PermissionError)


# Address space


def in_little_address_space(folder: str, megabytes: int) -> None:
    limit = megabytes << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        with RegistryWriter(folder) as writer, Registry(folder) as registry:
            writer.register_module(ModuleInfo("a.B"))
            with registry.snapshot() as snapshot:
                say(["a.B" in snapshot, len(registry)])
    except StoreError as error:
        say([str(folder) in error.message, error.remedy != "", type(error.__cause__).__name__])


def size_of_the_interpreter() -> int:
    """Megabytes of address space that a process has taken before it opens anything."""
    text = subprocess.run(
        [
            sys.executable,
            "-c",
            "from dspy_registry import Registry, RegistryWriter; print(open('/proc/self/statm').read().split()[0])",
        ],
        capture_output=True,
        check=True,
        text=True,
        cwd=ROOT,
    ).stdout
    return int(text) * resource.getpagesize() >> 20


@pytest.mark.parametrize("spare", each(3, [400, 2000, 5000]))
def test_where_address_space_is_limited_a_smaller_map_is_used(registry_folder: Path, spare: int) -> None:
    assert run(__name__, "in_little_address_space", registry_folder, size_of_the_interpreter() + spare) == [[True, 7]]
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:  # and a large one after that
        assert writer.register_module(ModuleInfo("a.C")) == registry.revision
    assert run(__name__, "in_little_address_space", registry_folder, size_of_the_interpreter() + spare) == [[True, 8]]


def test_too_little_address_space_is_named(tmp_path: Path) -> None:
    said = run(__name__, "in_little_address_space", tmp_path, size_of_the_interpreter() + 100)
    assert said == [[True, True, "MemoryError"]]


def test_answers_are_json(folder: Path) -> None:
    """The survey compares what it reads as text: it must not depend on the order of a dict."""
    assert json.dumps(read_apart(folder)) == json.dumps(read_apart(folder))
