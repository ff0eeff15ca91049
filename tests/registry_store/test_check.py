"""The check finds every kind of damage, names the invariant, and finds nothing where nothing is wrong."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dspy_registry import FormatVersionError, ModuleInfo, Policy, RegistryNotFoundError, RegistryWriter, StoreError
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.changes import Alias, alias_codec
from dspy_registry.registry_store.check.checker import check, check_apart
from dspy_registry.registry_store.postings import load_block, store_block
from dspy_registry.registry_store.protocol import Remembered, remembered_codec
from dspy_registry.registry_store.revision import RevisionFile
from dspy_registry.registry_store.sharing import attach, detach
from tests.conftest import violations
from tests.support import TESTS, raw_access
from tests.support.damages import DAMAGE, exchange, exchange_a_member, put_dumped, put_sealed
from tests.support.raw_access import Get, Put, behind, flipped, opened, posting
from tests.support.usage_helpers import batches, merge

folder = raw_access.folder

LEAF, DIRTY = 0x02, 0x10
"""Flags of LMDB's pages."""


def found_in(folder: Path) -> set[tuple[str, str]]:
    return {(violation.invariant, violation.where) for violation in check(folder)}


def ids(rows: list[tuple[str, str, Any]]) -> list[str]:
    return [f"{number}-{where}" for number, where, _ in rows]


def damage_of(*numbers: str) -> Any:
    rows = [row for row in DAMAGE if row[0] in numbers]
    return pytest.mark.parametrize(("number", "where", "damage"), rows, ids=ids(rows))


def assert_found(folder: Path, number: str, where: str, damage: Callable[[Get, Put], None]) -> None:
    with opened(folder) as (get, put):
        damage(get, put)
    found = list(check(folder))
    assert any(each.invariant == number and each.where.startswith(where) for each in found), found


@damage_of("I5")
def test_i5_an_index_that_disagrees_is_found(folder: Path, number: str, where: str, damage: Any) -> None:
    assert_found(folder, number, where, damage)


@damage_of("I6")
def test_i6_an_alias_that_leads_nowhere_is_found(folder: Path, number: str, where: str, damage: Any) -> None:
    assert_found(folder, number, where, damage)


@damage_of("I7")
def test_i7_layers_that_do_not_make_the_record_are_found(folder: Path, number: str, where: str, damage: Any) -> None:
    assert_found(folder, number, where, damage)


@damage_of("I8")
def test_i8_a_gap_in_history_is_found(folder: Path, number: str, where: str, damage: Any) -> None:
    assert_found(folder, number, where, damage)


@damage_of("I9")
def test_i9_a_change_log_that_disagrees_is_found(folder: Path, number: str, where: str, damage: Any) -> None:
    assert_found(folder, number, where, damage)


@damage_of("I10")
def test_i10_a_value_that_is_not_whole_is_found(folder: Path, number: str, where: str, damage: Any) -> None:
    assert_found(folder, number, where, damage)


WITHOUT_ROWS = ("labels", "programs", "policies")


@pytest.mark.parametrize("database", [name.decode() for name in layout.DATABASES])
def test_i24_exchanged_values_are_found_in_every_database(tmp_path: Path, database: str) -> None:
    shutil.copytree(TESTS / "fixtures" / "format-2" / "full", tmp_path / "registry")
    with opened(tmp_path / "registry") as (get, put):
        keys = exchangeable(tmp_path / "registry", database)
        for key in keys:
            if database in WITHOUT_ROWS:
                put_sealed(database, key, key)(get, put)
            elif database == "requests":
                put_dumped(database, key, remembered_codec, Remembered(1, ()))(get, put)
        exchange(database, *keys)(get, put)
    wrong = {where for number, where in found_in(tmp_path / "registry") if number in ("I8", "I10")}
    if database == "meta":  # without its head nothing else is looked at
        assert wrong == {"meta"}
    else:
        assert len({where for where in wrong if where.startswith(f"{database}/")}) >= 2, wrong


def exchangeable(folder: Path, database: str) -> tuple[bytes, bytes]:
    """Two keys of a database whose values are of one kind."""
    if database == "meta":
        return layout.META_STATE, layout.META_VOCABULARY
    if database in (*WITHOUT_ROWS, "requests"):
        return b"one\0key", b"other\0key"
    environment = attach(folder)
    try:
        with environment.reading() as txn:
            keys = [bytes(key) for key, _ in txn.cursor(getattr(environment.dbs, database))]
    finally:
        detach(environment)
    kept = [key for key in keys if database != "usage" or not key.startswith(b"\0")]
    return kept[0], kept[-1]


def test_i5_a_changed_index_is_only_what_is_reported(folder: Path) -> None:
    with opened(folder) as (get, put):
        exchange_a_member(get, put)
    assert found_in(folder) == {("I5", "postings/capability:reasoning")}
    assert list(check_apart(folder)) == list(check(folder))


@pytest.mark.full
def test_i5_modules_are_found_in_every_block_of_a_posting(tmp_path: Path) -> None:
    count = (1 << layout.BLOCK_BITS) + 100
    with RegistryWriter(tmp_path) as writer:
        writer.register_modules([ModuleInfo(f"a.M{i}", capabilities=(f"c{i % 7}",)) for i in range(count)])
        for i in range(0, count, 500):
            writer.unregister_module(f"a.M{i}")
    assert violations(tmp_path) == []
    with opened(tmp_path) as (get, put):
        key = posting("capability:c3", 1)
        block = load_block(get("postings", key), key, layout.FORMAT_VERSION)
        block.remove(block[0])
        put("postings", key, store_block(block, key, layout.FORMAT_VERSION))
    assert found_in(tmp_path) == {("I5", "postings/capability:c3")}


def test_i2_a_word_that_cannot_be_is_found(folder: Path) -> None:
    file = RevisionFile(folder, writable=True)
    right = file.word[()]
    for wrong in (right - 1, right + 2, right + 4, float("nan"), -1.0):
        file.word[()] = wrong
        assert found_in(folder) <= {("I2", "revision")}
        assert (wrong == wrong) == (("I2", "revision") in found_in(folder))
    for possible in (right + 1, right + 3):  # of a commit under way
        file.word[()] = possible
        assert found_in(folder) == set()


def test_i13_a_revision_file_of_another_registry_is_found(folder: Path) -> None:
    with opened(folder) as (_, put):
        put("meta", layout.META_ID, b"another registry")
    assert found_in(folder) == {("I2", "revision")}
    (folder / layout.REVISION_FILE).unlink()
    assert found_in(folder) == {("I2", "revision")}


def test_i18_another_format_is_refused_and_left_untouched(folder: Path) -> None:
    with opened(folder) as (_, put):
        put("meta", layout.META_FORMAT, b"7")
    before = (folder / layout.DATA_FILE).read_bytes()
    for refused in (lambda: list(check(folder)), lambda: RegistryWriter(folder)):
        with pytest.raises(FormatVersionError) as caught:
            refused()
        assert (caught.value.found, caught.value.supported) == (7, 2)
    assert (folder / layout.DATA_FILE).read_bytes() == before
    with pytest.raises(StoreError, match="7"):
        list(check_apart(folder))


def test_i23_a_file_cut_short_is_found_before_it_is_read(folder: Path) -> None:
    os.truncate(folder / layout.DATA_FILE, 5 * 4096)
    assert found_in(folder) == {("I23", "data.mdb")}
    assert list(check_apart(folder)) == list(check(folder))


def test_i10_a_page_overwritten_is_found_and_kills_only_the_process_that_looks(folder: Path) -> None:
    """A record with pages of its own that says it is longer than the file: a look at its end is a SIGBUS."""
    with RegistryWriter(folder) as writer:
        writer.register_module(ModuleInfo("a.Longer", metadata={"text": "x" * 20_000}))
    content = bytearray((folder / layout.DATA_FILE).read_bytes())
    for start in range(2 * 4096, len(content), 4096):
        _, _, flags, end, _ = struct.unpack_from("<QHHHH", content, start)
        for at in struct.unpack_from(f"<{(end - 16) // 2}H", content, start + 16) if flags == 2 else ():
            if content[start + at + 8 : start + at + 16] == b"a.Longer" and content[start + at + 4] & 1:
                struct.pack_into("<I", content, start + at, 1 << 28)
    (folder / layout.DATA_FILE).write_bytes(content)
    last = list(check_apart(folder))[-1]
    assert (last.invariant, last.where) == ("I10", "data.mdb")
    assert any(name in last.message for name in ("SIGBUS", "SIGSEGV", "SIGABRT")), last


def test_a_missing_registry_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryNotFoundError):
        list(check(tmp_path / "missing"))
    with pytest.raises(StoreError, match=str(tmp_path)):
        list(check_apart(tmp_path / "missing"))


def test_an_open_environment_is_checked_while_its_writer_goes_on(registry_folder: Path) -> None:
    told: list[tuple[int, int]] = []
    with RegistryWriter(registry_folder) as writer:
        writer.register_modules([ModuleInfo(f"a.M{i}") for i in range(2500)])
        found = check(writer.store.environment, lambda done, total: told.append((done, total)))
        for number, _ in enumerate(found):
            writer.register_module(ModuleInfo("a.More", estimated_duration=number))
        assert told == [(0, 2506), (1000, 2506), (2000, 2506), (2506, 2506)]
        walk = check(writer.store.environment)
        assert next(walk, None) is None
        abandoned = check(registry_folder)
        abandoned.close()
        assert writer.store.environment.open_snapshots == 0


def test_as_a_command_it_prints_json_lines(folder: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, list[bytes], bytes]:
        command = [sys.executable, "-m", "dspy_registry.registry_store.check", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.returncode, done.stdout.splitlines(), done.stderr

    assert run(folder) == (0, [], b"")
    with opened(folder) as (_, put):
        put("aliases", b"cot", alias_codec.dump(Alias("a.Ghost", "client"), b"cot", layout.FORMAT_VERSION))
    status, lines, _ = run(folder)
    decoded = [msgspec.json.decode(line) for line in lines]
    assert (status, decoded) == (
        1,
        [{"invariant": "I6", "where": "aliases/cot", "message": "means a.Ghost, which is not registered"}],
    )
    assert run()[0] == 2
    assert run(tmp_path / "missing")[0] == 2


def test_usage_of_a_version_without_the_usage_in_all_is_told(tmp_path: Path) -> None:
    with RegistryWriter(tmp_path) as writer:
        merge(writer, batches([("dspy.Predict", 7.0)]))
        with behind(writer) as (txn, dbs):
            assert txn.delete(b"dspy.Predict", db=dbs.usage)
    invariant, where = found_in(tmp_path).pop()
    assert (invariant, where.partition("\0")[0]) == ("I10", "usage/dspy.Predict")


@pytest.mark.stress
@pytest.mark.timeout(600)  # half of the usual limit goes into making the modules
def test_a_million_modules_are_checked_in_bounded_memory(tmp_path: Path) -> None:
    """Its memory stays below 256 MiB, the mapped file aside."""
    count = 1_000_000
    with RegistryWriter(tmp_path) as writer:
        writer.register_modules([ModuleInfo(f"a.M{i}", capabilities=(f"c{i % 100}",)) for i in range(count)])
    script = (
        "import re, sys; from dspy_registry.registry_store.check.checker import check; "
        "assert list(check(sys.argv[1])) == []; status = open('/proc/self/status').read(); "
        "print(int(re.search(r'RssAnon:\\s+(\\d+)', status)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=True)
    assert int(done.stdout) < 256 * 1024


def test_i10_what_lmdb_cannot_read_hides_nothing_that_is_read_later(tmp_path: Path) -> None:
    """LMDB ends a transaction in which it finds damage."""
    path = tmp_path / "damaged"
    with RegistryWriter(path) as writer:
        writer.register_modules([ModuleInfo(f"a.M{i}", metadata={"t": "x" * 500}) for i in range(100)])
        writer.set_policy("acme.*", Policy(max_concurrency=4))
    with opened(path) as (get, put):
        put("policies", b"client\0acme.*", flipped(get("policies", b"client\0acme.*")))
    data = bytearray((path / layout.DATA_FILE).read_bytes())
    for page in range(0, len(data), mmap.PAGESIZE):
        if b"a.M50\x93" in data[page : page + mmap.PAGESIZE] and data[page + 10] == LEAF:
            data[page + 10] = DIRTY
    (path / layout.DATA_FILE).write_bytes(data)
    found = list(check_apart(path))
    assert (found[0].where, "MDB_CORRUPTED" in found[0].message) == ("modules", True)
    assert "policies/client/acme.*" in {violation.where.replace("\0", "/") for violation in found}
    assert not [violation for violation in found if "BAD_TXN" in violation.message]
