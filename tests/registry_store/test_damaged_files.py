"""Damage to data.mdb is told by every command and never adopted; only what was never completed is created again."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from dspy_registry import DamagedStoreError, ModuleInfo, Registry, RegistryError, RegistryWriter
from dspy_registry.registry_store import data_file, meta_pages
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.check.checker import check, check_apart
from dspy_registry.registry_store.layout import DATA_FILE, DATABASES, LOCK_FILE, REVISION_FILE, WRITER_LOCK_FILE
from dspy_registry.registry_store.opening import create
from dspy_registry.writer.restore import restore
from tests.support.command import run_in_child
from tests.support.processes import child, requests, say
from tests.support.selection import each

PAGE = mmap.PAGESIZE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "damaged"
    with RegistryWriter(path) as writer:
        for start in range(0, 300, 100):
            writer.register_modules(
                [ModuleInfo(f"a.M{i}", metadata={"t": "x" * 500}) for i in range(start, start + 100)]
            )
    return path


def files(folder: Path) -> dict[str, bytes]:
    """What the folder holds, but for the reader table and writer.lock, in which whoever opens them leaves its pid."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (LOCK_FILE, WRITER_LOCK_FILE)}


def metas(content: bytes) -> list[tuple[int, meta_pages.MetaPage]]:
    found = [(at, meta_pages.parse_meta_page(content[at : at + meta_pages.META_BYTES])) for at in (0, PAGE)]
    return [(at, page) for at, page in found if page is not None]


def change(folder: Path, changed: Callable[[bytes], bytes]) -> None:
    path = folder / DATA_FILE
    path.write_bytes(changed(path.read_bytes()))


def main_root(content: bytes) -> int:
    found = max((page for _, page in metas(content)), key=lambda page: page.transaction).main_root
    assert found is not None
    return found


def rooted(content: bytes, number: int) -> bytes:
    """With this page as the main root of the newest transaction."""
    data = bytearray(content)
    at, _ = max(metas(content), key=lambda found: found[1].transaction)
    struct.pack_into("<Q", data, at + 128, number)
    return bytes(data)


def other_root(content: bytes) -> bytes:
    """A page of records in the place of the main root, as in a copy that was made under a writer."""
    return rooted(content, content.rindex(b"a.M7") // PAGE)


def cut(content: bytes) -> bytes:
    return content[: len(content) * 99 // 100]


def flipped(at: int, bit: int) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        data = bytearray(content)
        data[at] ^= 1 << bit
        return bytes(data)

    return flip


def endless(content: bytes) -> bytes:
    """The newest meta page tells of 2**40 pages more. What lists them all does not come to its end."""
    at, _ = max(metas(content), key=lambda found: found[1].transaction)
    return flipped(at + 141, 0)(content)


LOST: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "zeros": lambda _: bytes(2 * PAGE),
    "first page only": lambda content: content[:PAGE],
    "cut by 1 %": cut,
    "cut to two pages": lambda content: content[: 2 * PAGE],
    "other root": other_root,
    "flags of the tree of free pages": flipped(44, 2),  # LMDB aborts at a key of this tree with several values
    "flags of the main tree": flipped(PAGE + 92, 2),
    "a file of 2**52 bytes": endless,
    "text": lambda _: b"not LMDB at all" * 1000,
    "one meta page overwritten": lambda content: content[:PAGE] + bytes(PAGE) + content[2 * PAGE :],
}


def openings(folder: Path) -> list[Callable[[], Any]]:
    return [
        lambda: Registry(folder),
        lambda: RegistryWriter(folder),
        lambda: backup(folder.parent / "backup", folder),
        lambda: restore(folder, folder.parent / "restored"),
    ]


@pytest.mark.parametrize("damage", each(3, LOST))
def test_i23_a_damaged_data_file_is_named_and_nothing_is_written(folder: Path, damage: str) -> None:
    change(folder, LOST[damage])
    before = files(folder)
    for opening in openings(folder):
        with pytest.raises(RegistryError, match=DATA_FILE) as caught:
            opening()
        assert caught.value.remedy
    for found in (check, check_apart):
        assert {(violation.invariant, violation.where) for violation in found(folder)} == {("I23", DATA_FILE)}
    assert files(folder) == before
    assert not (folder.parent / "restored" / DATA_FILE).exists()


def test_i23_an_old_main_root_is_not_written_by(folder: Path) -> None:
    """The head that it leads to is of a former revision, and other pages of that were used again."""
    content = (folder / DATA_FILE).read_bytes()
    newest = max((page for _, page in metas(content)), key=lambda page: page.transaction)
    with (folder / DATA_FILE).open("rb") as file:
        old = next(
            number
            for number in meta_pages.free_pages(file.fileno(), newest)
            if b"modules" in (page := content[number * PAGE : (number + 1) * PAGE]) and b"postings" in page
        )
    change(folder, lambda content: rooted(content, old))
    before = files(folder)
    with pytest.raises(DamagedStoreError, match=DATA_FILE):
        RegistryWriter(folder)
    assert {(found.invariant, found.where) for found in check_apart(folder)} == {("I23", DATA_FILE)}
    assert files(folder) == before


@pytest.mark.parametrize("is_numbered", [False, True])
def test_i23_an_old_page_in_the_place_of_the_main_root_is_not_written_by(folder: Path, is_numbered: bool) -> None:
    content = (folder / DATA_FILE).read_bytes()
    root = main_root(content)
    with RegistryWriter(folder) as writer:
        writer.register_module(ModuleInfo("a.Later"))
    old = content[root * PAGE : (root + 1) * PAGE]
    content = (folder / DATA_FILE).read_bytes()
    new = main_root(content)
    assert new != root
    page = struct.pack("<Q", new) + old[8:] if is_numbered else old
    change(folder, lambda content: content[: new * PAGE] + page + content[(new + 1) * PAGE :])
    before = files(folder)
    with pytest.raises(DamagedStoreError, match="main root"):
        RegistryWriter(folder)
    assert {(found.invariant, found.where) for found in check_apart(folder)} == {("I23", DATA_FILE)}
    assert files(folder) == before


def reads(folder: str) -> None:
    with Registry(folder) as registry:
        say(registry.get_module("a.M1").name)
        for _ in requests():
            pass


def test_i23_an_overwritten_lock_file_is_named_and_not_the_data_file(folder: Path) -> None:
    """While a reader lives. Where nobody has it open, LMDB makes it again."""
    with child(__name__, "reads", folder) as reader:
        assert reader.hear() == "a.M1"
        with (folder / LOCK_FILE).open("r+b") as file:
            file.write(bytes(os.fstat(file.fileno()).st_size))
        for command in (("get", "a.M1"), ("status",), ("serve",), ("backup", str(folder.parent / "backup"))):
            done = run_in_child(*command, "--path", folder)
            assert (done.returncode, str(folder / LOCK_FILE) in done.stderr) == (1, True), done
        assert {(found.invariant, found.where) for found in check_apart(folder)} == {("I23", LOCK_FILE)}
    assert list(check(folder)) == []


@pytest.mark.parametrize("damage", ["empty", "cut by 1 %", "other root"])
def test_i23_every_command_says_what_is_wrong(folder: Path, damage: str) -> None:
    """Each in its own process, which reading the file would kill."""
    change(folder, LOST[damage])
    before = files(folder)
    for command in (
        ("get", "a.M1"),
        ("list",),
        ("status",),
        ("serve",),
        ("check",),
        ("backup", str(folder.parent / "backup")),
        ("register", "--embedded", "-"),
    ):
        done = run_in_child(*command, "--path", folder, stdin='{"name": "a.B"}')
        assert done.returncode == 1, done
        assert str(folder / DATA_FILE) in done.stderr + done.stdout, done
        assert "Traceback" not in done.stderr
    assert files(folder) == before


def test_i23_a_missing_data_file_is_not_taken_for_a_new_registry(folder: Path) -> None:
    (folder / DATA_FILE).unlink()
    before = files(folder)
    for opening in (lambda: RegistryWriter(folder), lambda: Registry(folder), lambda: backup(folder / "copy", folder)):
        with pytest.raises(DamagedStoreError, match=REVISION_FILE):
            opening()
    assert [violation.invariant for violation in check(folder)] == ["I23"]
    assert files(folder) == before


@pytest.mark.parametrize("damage", each(4, [*LOST, "missing"]))
def test_i23_a_damaged_registry_is_mended_by_a_backup(folder: Path, damage: str) -> None:
    made = backup(folder.parent / "backup", folder)
    if damage == "missing":
        (folder / DATA_FILE).unlink()
    else:
        change(folder, LOST[damage])
    assert restore(folder.parent / "backup", folder).modules == made.modules
    assert list(check(folder)) == []


@pytest.mark.parametrize("name", DATABASES[1:])
def test_i23_a_database_that_is_gone_is_not_created_again(folder: Path, name: bytes) -> None:
    with lmdb.open(str(folder), max_dbs=20, map_size=1 << 28) as env, env.begin(write=True) as txn:
        txn.drop(env.open_db(name, txn=txn), delete=True)
    before = files(folder)
    for opening in (lambda: Registry(folder), lambda: RegistryWriter(folder)):
        with pytest.raises(DamagedStoreError, match=name.decode()):
            opening()
    assert files(folder) == before


@pytest.mark.parametrize("version", [b"", b"one", b"9" * 5000, b"-1"])
def test_i23_a_format_that_is_none_is_named(folder: Path, version: bytes) -> None:
    with lmdb.open(str(folder), max_dbs=20, map_size=1 << 28) as env, env.begin(write=True) as txn:
        txn.put(b"format", version, db=env.open_db(b"meta", txn=txn))
    for opening in (lambda: Registry(folder), lambda: RegistryWriter(folder)):
        with pytest.raises(DamagedStoreError, match="format"):
            opening()


# What was never completed


def first_write() -> bytes:
    """What LMDB writes first."""
    with tempfile.TemporaryDirectory() as path:
        lmdb.open(path).close()
        content = (Path(path) / DATA_FILE).read_bytes()
    assert all(page.transaction == 0 for _, page in metas(content))
    return content


def next_page() -> bytes:
    """What LMDB writes before it syncs its first write."""
    with tempfile.TemporaryDirectory() as path:
        with lmdb.open(path, max_dbs=2) as env:
            env.open_db(b"meta")
        return (Path(path) / DATA_FILE).read_bytes()[2 * PAGE :]


UNFINISHED: dict[str, Callable[[], bytes]] = {
    "no bytes": lambda: b"",
    "one page of zeros": lambda: bytes(PAGE),
    "zeros": lambda: bytes(2 * PAGE),
    "the first page": lambda: first_write()[:PAGE],
    "the first page and zeros": lambda: first_write()[:PAGE] + bytes(PAGE),
    "the second page": lambda: bytes(PAGE) + first_write()[PAGE:],
    "both pages": first_write,
    "both pages but the last sector": lambda: first_write()[:-512],
    "the page of the next transaction before both": lambda: bytes(2 * PAGE) + next_page(),
    "the second page and that of the next transaction": lambda: bytes(PAGE) + first_write()[PAGE:] + next_page(),
    "the first page and a sector of that of the next": lambda: first_write()[:PAGE] + bytes(2 * PAGE - 512) + b"x" * 9,
}


@pytest.mark.parametrize("written", UNFINISHED)
def test_i23_a_creation_that_a_power_loss_cut_short_is_begun_again(registry_folder: Path, written: str) -> None:
    registry_folder.mkdir()
    (registry_folder / DATA_FILE).write_bytes(UNFINISHED[written]())
    with pytest.raises(RegistryError):
        Registry(registry_folder)
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry:
        assert len(registry) == 6


@pytest.mark.parametrize("made", range(len(DATABASES) + 1))
def test_i23_a_creation_is_completed_whatever_databases_it_had_made(registry_folder: Path, made: int) -> None:
    registry_folder.mkdir()
    with lmdb.open(str(registry_folder), max_dbs=20) as env:
        for name in DATABASES[:made]:
            env.open_db(name)
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry:
        assert len(registry) == 6


def test_i23_a_head_that_is_gone_without_a_revision_file_is_damage_too(folder: Path) -> None:
    (folder / REVISION_FILE).unlink()
    change(folder, other_root)
    before = files(folder)
    with pytest.raises(DamagedStoreError, match=DATA_FILE):
        RegistryWriter(folder)
    assert files(folder) == before


# Another program's LMDB


@pytest.mark.parametrize(("name", "with_lock_file"), [(None, True), (b"theirs", True), (b"meta", True), (None, False)])
def test_i23_another_programs_environment_is_left_untouched(
    tmp_path: Path, name: bytes | None, with_lock_file: bool
) -> None:
    with lmdb.open(str(tmp_path), max_dbs=3) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value", db=env.open_db(name, txn=txn) if name else None)
    if not with_lock_file:
        (tmp_path / LOCK_FILE).unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for opening in (lambda: RegistryWriter(tmp_path), lambda: restore(backup_of(tmp_path), tmp_path)):
        with pytest.raises(DamagedStoreError, match=DATA_FILE):
            opening()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def backup_of(folder: Path) -> Path:
    """A backup of some registry, beside the folder."""
    source, target = folder.parent / f"{folder.name}.source", folder.parent / f"{folder.name}.backup"
    if not target.exists():
        RegistryWriter(source).close()
        backup(target, source)
    return target


# Free pages


@pytest.fixture
def changed(tmp_path: Path) -> Iterator[Any]:
    """An environment that was changed at random."""
    with lmdb.open(str(tmp_path), map_size=1 << 28, max_dbs=2, sync=False) as env:
        yield env


def change_at_random(env: Any, databases: list[Any], chance: random.Random) -> None:
    """One commit that puts and deletes."""
    with env.begin(write=True) as txn:
        for _ in range(chance.choice([1, 5, 50, 300])):
            database, key = chance.choice(databases), b"%05d" % chance.randrange(2000)
            if chance.random() < 0.5:
                txn.put(key, b"x" * chance.choice([10, 300, 1500, 5000, 40000]), db=database)
            else:
                cursor = txn.cursor(database)
                if cursor.set_range(key):
                    cursor.delete()


def test_free_pages_are_those_that_lmdb_counts_in_no_tree(changed: Any, tmp_path: Path) -> None:
    """Among them are pages beyond the end of a file that is whole: LMDB never wrote them."""
    chance = random.Random(0)
    databases = [changed.open_db(name) for name in (b"a", b"b")]
    short = 0
    for _ in range(40):
        change_at_random(changed, databases, chance)
        with changed.begin() as txn:
            trees = [changed.stat(), *map(txn.stat, databases)]
        used = sum(tree[kind] for tree in trees for kind in ("branch_pages", "leaf_pages", "overflow_pages"))
        content = (tmp_path / DATA_FILE).read_bytes()
        newest = max((page for _, page in metas(content)), key=lambda page: page.transaction)
        of_free_pages = sum(struct.unpack_from("<3Q", content, at_of(content, newest) + 48))
        unused, pages = data_file.unused_pages(tmp_path) or (0, 0)
        assert used + of_free_pages + unused + 2 == pages == newest.last_page + 1
        short += len(content) < newest.file_bytes
        data_file.refuse_damaged(tmp_path)
    assert short
    os.truncate(tmp_path / DATA_FILE, len(content) * 9 // 10)
    with pytest.raises(DamagedStoreError, match=DATA_FILE):
        data_file.refuse_damaged(tmp_path)


def at_of(content: bytes, newest: meta_pages.MetaPage) -> int:
    return next(at for at, page in metas(content) if page == newest)


def test_a_creation_that_was_only_begun_holds_nothing(tmp_path: Path) -> None:
    create(tmp_path)
    assert data_file.unused_pages(tmp_path) is not None
    shutil.copy(tmp_path / DATA_FILE, tmp_path / "copy")
    assert not data_file.is_unfinished(tmp_path)
