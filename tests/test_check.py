"""The check finds every kind of damage, names the invariant, and finds nothing where nothing is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import violations

from registry_store import FormatVersionError, ModuleInfo, Provenance, RegistryNotFoundError, StoreError, layout
from registry_store.changes import (
    Alias,
    Change,
    ModuleChange,
    State,
    alias_codec,
    change_codec,
    implications_codec,
    state_codec,
)
from registry_store.check import check, check_apart
from registry_store.codec import encode, open_record, seal, seal_record
from registry_store.layers import Layer, layer_codec
from registry_store.order import GONE, NAMES_PER_ROW, load_row, store_row
from registry_store.postings import BitMap, load_block, store_block
from registry_store.revision import RevisionFile
from registry_store.sharing import attach, detach
from writer import RegistryWriter

Put = Callable[[str, bytes, bytes | None], None]
Get = Callable[[str, bytes], bytes]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registry with something of everything in it, to be damaged."""
    path = tmp_path / "damaged"
    with RegistryWriter(path) as writer:
        commit = writer.store.committer.commit
        writer.set_alias("cot", "dspy.ChainOfThought")
        for duration in range(20):
            writer.register_module(ModuleInfo("a.Twenty", estimated_duration=duration, capabilities=("x",)))
        writer.set_implications({"x": ("y",), "y": ("z",)})
        writer.register_module(ModuleInfo("a.Gone"))
        writer.unregister_module("a.Gone")
        commit(lambda draft: draft.declare("a.Layered", Layer("manifest:b.toml", {"category": "mine"})))
        commit(lambda draft: draft.declare("a.Layered", Layer("discovered", {"metadata": {"a": 1}})))
        writer.register_module(ModuleInfo("dspy.Predict", category="other"))
    assert violations(path) == []
    return path


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Get, Put]]:
    """Raw access to the stored bytes, past everything that keeps them right."""
    environment = attach(folder, writable=True)
    try:
        with environment.write_gate, environment.lmdb.begin(write=True) as txn:

            def get(database: str, key: bytes) -> bytes:
                value: bytes = txn.get(key, db=getattr(environment.dbs, database))
                return value

            def put(database: str, key: bytes, value: bytes | None) -> None:
                handle = getattr(environment.dbs, database)
                assert txn.delete(key, db=handle) if value is None else txn.put(key, value, db=handle)

            yield get, put
    finally:
        detach(environment)


def flipped(value: bytes, at: int = 3) -> bytes:
    return value[:at] + bytes([value[at] ^ 0x10]) + value[at + 1 :]


def rewritten(get: Get, name: str, /, **changes: Any) -> bytes:
    """The record of a module with other fields or another provenance."""
    stored = open_record(get("modules", name.encode()), name)
    kept = {key: changes.pop(key) for key in tuple(changes) if key in Provenance.__struct_fields__}
    info = msgspec.structs.replace(stored.info, **changes)
    return seal_record(encode(info), msgspec.structs.replace(stored.provenance, **kept))


def sequence_of(get: Get, name: str) -> int:
    return open_record(get("modules", name.encode()), name).provenance.sequence


def state(get: Get) -> State:
    loaded: State = state_codec.load(get("meta", layout.META_STATE))
    return loaded


def posting(term: str, block: int = 0) -> bytes:
    return layout.posting_key(term.encode(), block)


def change_at(get: Get, revision: int) -> Change:
    loaded: Change = change_codec.load(get("changes", layout.revision_key(revision)))
    return loaded


def rewrite_change(get: Get, put: Put, revision: int, **changes: Any) -> None:
    changed = msgspec.structs.replace(change_at(get, revision), **changes)
    put("changes", layout.revision_key(revision), change_codec.dump(changed))


def flip(database: str, key: bytes) -> Callable[[Get, Put], None]:
    return lambda get, put: put(database, key, flipped(get(database, key)))


def replace_record(name: str, /, **changes: Any) -> Callable[[Get, Put], None]:
    return lambda get, put: put("modules", name.encode(), rewritten(get, name, **changes))


def put_row(database: str, key: bytes, value: bytes | None) -> Callable[[Get, Put], None]:
    return lambda _, put: put(database, key, value)


def drop_sequence(get: Get, put: Put) -> None:
    rename(get, put, sequence_of(get, "a.Twenty"), GONE)


def name_twice(get: Get, put: Put) -> None:
    rename(get, put, 3, "dspy.ReAct")


def rename(get: Get, put: Put, sequence: int, name: str) -> None:
    number, place = divmod(sequence, NAMES_PER_ROW)
    names = load_row(get("sequences", layout.sequence_row_key(number)))
    names[place] = name
    put("sequences", layout.sequence_row_key(number), store_row(names))


def row_of_names(number: int, *names: str) -> Callable[[Get, Put], None]:
    return put_row("sequences", layout.sequence_row_key(number), seal("\0".join(names).encode()))


def lose_a_member(get: Get, put: Put) -> None:
    block = load_block(get("postings", posting("capability:reasoning")))
    block.remove(sequence_of(get, "dspy.ReAct"))
    put("postings", posting("capability:reasoning"), store_block(block))


def gain_a_member(get: Get, put: Put) -> None:
    block = load_block(get("postings", posting("capability:reasoning")))
    block.add(sequence_of(get, "dspy.Predict"))
    put("postings", posting("capability:reasoning"), store_block(block))


def exchange_a_member(get: Get, put: Put) -> None:
    lose_a_member(get, put)
    gain_a_member(get, put)


def misplace_a_block(get: Get, put: Put) -> None:
    put("postings", posting("category:mine", 7), get("postings", posting("category:mine")))
    put("postings", posting("category:mine"), None)


def forget_an_implication(_: Get, put: Put) -> None:
    put("meta", layout.META_VOCABULARY, implications_codec.dump({"client": {"x": ("y",)}}))


def go_back(get: Get, put: Put) -> None:
    put("meta", layout.META_STATE, state_codec.dump(State(state(get).revision - 1, 0, state(get).next_sequence)))


def skip_a_revision(get: Get, put: Put) -> None:
    put("meta", layout.META_STATE, state_codec.dump(State(state(get).revision + 1, 0, state(get).next_sequence)))


def wrong_layer_source(get: Get, put: Put) -> None:
    put("layers", layout.layer_key("a.Layered", "discovered"), layer_codec.dump(Layer("core", {})))


def unlog_a_module(get: Get, put: Put) -> None:
    rewrite_change(get, put, state(get).revision, modules=())


def misreport_a_version(get: Get, put: Put) -> None:
    change = change_at(get, state(get).revision)
    modules = (ModuleChange("dspy.Predict", "updated", 9), *change.modules[1:])
    rewrite_change(get, put, change.revision, modules=modules)


def report_a_ghost(get: Get, put: Put) -> None:
    change = change_at(get, state(get).revision)
    ghost = ModuleChange("a.Ghost", "registered", 1)
    rewrite_change(get, put, change.revision, modules=(*change.modules, ghost), keys=(*change.keys, "a.Ghost"))


def bring_back(_: Get, put: Put) -> None:
    info = ModuleInfo("a.Gone")
    put("modules", b"a.Gone", seal_record(encode(info), Provenance(1, 1, 0, 0)))


def change_of_another(get: Get, put: Put) -> None:
    put("changes", layout.revision_key(4), get("changes", layout.revision_key(5)))


DAMAGE: list[tuple[str, str, Callable[[Get, Put], None]]] = [
    ("I5", "modules/a.Twenty", drop_sequence),
    ("I5", "sequences/3", name_twice),
    ("I5", "sequences/96", row_of_names(12, "", "", "", "a.Ghost")),
    ("I5", "sequences/99", row_of_names(12, "", "", "", "a.Ghost")),
    ("I5", "sequences/96", row_of_names(12, "", "")),
    ("I5", "sequences/96", row_of_names(12, *"123456789")),
    ("I5", "sequences/0", replace_record("dspy.Predict", sequence=1)),
    ("I5", "postings/capability:reasoning", lose_a_member),
    ("I5", "postings/capability:reasoning", gain_a_member),
    ("I5", "postings/capability:reasoning", exchange_a_member),
    ("I5", "postings/category:mine", misplace_a_block),
    ("I5", "postings/category:none", put_row("postings", posting("category:none"), store_block(BitMap()))),
    ("I5", "postings/pool:ghosts", put_row("postings", posting("pool:ghosts"), store_block(BitMap([77])))),
    ("I5", "postings/junk", put_row("postings", b"junk", store_block(BitMap([1])))),
    ("I5", "postings/capability:z", put_row("postings", posting("capability:z"), None)),
    ("I5", "postings/category:", replace_record("dspy.ReAct", category="elsewhere")),
    ("I5", "postings/capability:z", forget_an_implication),
    ("I5", "modules/a.Gone", bring_back),
    ("I6", "aliases/cot", put_row("aliases", b"cot", alias_codec.dump(Alias("a.Ghost", "client")))),
    ("I6", "aliases/", put_row("aliases", b"\xff\n", alias_codec.dump(Alias("dspy.Predict", "client")))),
    ("I7", "layers/a.Layered", replace_record("a.Layered", source="core")),
    ("I7", "layers/a.Layered", replace_record("a.Layered", estimated_duration=5)),
    ("I7", "layers/a.Layered", wrong_layer_source),
    ("I7", "modules/dspy.ReAct", put_row("layers", layout.layer_key("dspy.ReAct", "core"), None)),
    (
        "I7",
        "layers/a.Ghost",
        put_row("layers", layout.layer_key("a.Ghost", "core"), layer_codec.dump(Layer("core", {}))),
    ),
    ("I8", "modules/a.Twenty", put_row("history", layout.versioned_key("a.Twenty", 19), None)),
    ("I8", "history/a.Twenty", put_row("history", layout.versioned_key("a.Twenty", 12), None)),
    ("I8", "history/a.Twenty", replace_record("a.Twenty", version=30)),
    (
        "I8",
        "history/a.Twenty/19",
        lambda get, put: put("history", b"a.Twenty\0\0\0\0\x13", get("history", b"a.Twenty\0\0\0\0\x12")),
    ),
    (
        "I8",
        "history/a.Twenty",
        lambda get, put: put("history", b"a.Twenty\0\0\0\0\x03", get("history", b"a.Twenty\0\0\0\0\x04")),
    ),
    ("I9", "changes", go_back),
    ("I9", "changes", skip_a_revision),
    ("I9", "changes", put_row("changes", layout.revision_key(1), None)),
    ("I9", "changes/7", put_row("changes", layout.revision_key(6), None)),
    ("I9", "changes/4", change_of_another),
    ("I9", "changes/5", lambda get, put: rewrite_change(get, put, 5, everything=True)),
    ("I9", "changes/5", lambda get, put: rewrite_change(get, put, 5, keys=("",))),
    ("I9", "changes/5", lambda get, put: rewrite_change(get, put, 5, terms=("reasoning",))),
    ("I9", "changes/5", lambda get, put: rewrite_change(get, put, 5, keys=("Twenty",))),
    ("I9", "modules/dspy.Predict", unlog_a_module),
    ("I9", "changes/", misreport_a_version),
    ("I9", "changes/", report_a_ghost),
    ("I9", "modules/dspy.ReAct", replace_record("dspy.ReAct", revision=999)),
    ("I10", "modules/dspy.ReAct", flip("modules", b"dspy.ReAct")),
    ("I10", "modules/dspy.ReAct", put_row("modules", b"dspy.ReAct", b"short")),
    ("I10", "modules/dspy.ReAct", put_row("modules", b"dspy.ReAct", seal(b"\x93\x01\x02\xc4\x04"))),
    ("I10", "modules/dspy.ReAct", replace_record("dspy.ReAct", name="dspy.Other")),
    ("I10", "modules/dspy.ReAct", replace_record("dspy.ReAct", estimated_duration=-1)),
    ("I10", "sequences/0", flip("sequences", layout.sequence_row_key(0))),
    ("I10", "sequences/0", put_row("sequences", layout.sequence_row_key(0), seal(b"\xff"))),
    ("I10", "postings/gpu:no", flip("postings", posting("gpu:no"))),
    ("I10", "postings/gpu:no", put_row("postings", posting("gpu:no"), seal(b"junk!"))),
    ("I10", "aliases/cot", flip("aliases", b"cot")),
    ("I10", "layers/a.Layered/discovered", flip("layers", layout.layer_key("a.Layered", "discovered"))),
    ("I10", "history/a.Twenty/12", flip("history", layout.versioned_key("a.Twenty", 12))),
    ("I10", "changes/5", flip("changes", layout.revision_key(5))),
    ("I10", "requests/client", put_row("requests", b"client", b"unsealed")),
    ("I10", "usage/dspy.ReAct", put_row("usage", b"dspy.ReAct", b"unsealed")),
    ("I10", "meta", flip("meta", layout.META_STATE)),
    ("I10", "meta", flip("meta", layout.META_VOCABULARY)),
    ("I10", "meta", put_row("meta", layout.META_DEFAULTS, b"unsealed")),
    ("I10", "meta", put_row("meta", layout.META_STATE, None)),
    ("I10", "meta", put_row("meta", layout.META_FORMAT, b"one")),
    (
        "I10",
        "meta",
        put_row("meta", layout.META_VOCABULARY, implications_codec.dump({"client": {"a": ("b",), "b": ("a",)}})),
    ),
]


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


def test_i5_a_changed_index_is_only_what_is_reported(folder: Path) -> None:
    with opened(folder) as (get, put):
        exchange_a_member(get, put)
    assert found_in(folder) == {("I5", "postings/capability:reasoning")}
    assert list(check_apart(folder)) == list(check(folder))


def test_i5_modules_are_found_in_every_block_of_a_posting(tmp_path: Path) -> None:
    count = (1 << layout.BLOCK_BITS) + 100
    with RegistryWriter(tmp_path) as writer:
        writer.register_modules([ModuleInfo(f"a.M{i}", capabilities=(f"c{i % 7}",)) for i in range(count)])
        for i in range(0, count, 500):
            writer.unregister_module(f"a.M{i}")
    assert violations(tmp_path) == []
    with opened(tmp_path) as (get, put):
        block = load_block(get("postings", posting("capability:c3", 1)))
        block.remove(block[0])
        put("postings", posting("capability:c3", 1), store_block(block))
    assert found_in(tmp_path) == {("I5", "postings/capability:c3")}


def test_i2_a_word_that_cannot_be_is_found(folder: Path) -> None:
    file = RevisionFile(folder, writable=True)
    right = file.word[()]
    for wrong in (right - 1, right + 4, float("nan"), -1.0):
        file.word[()] = wrong
        assert found_in(folder) <= {("I2", "revision")}
        assert (wrong == wrong) == (("I2", "revision") in found_in(folder))
    for possible in (right + 1, right + 2, right + 3):  # of a commit under way
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
        with pytest.raises(FormatVersionError, match="format version 7, this release reads 1") as caught:
            refused()
        assert (caught.value.found, caught.value.supported) == (7, 1)
    assert (folder / layout.DATA_FILE).read_bytes() == before
    with pytest.raises(StoreError, match="format version 7"):
        list(check_apart(folder))


def test_i10_a_file_cut_short_is_found_and_kills_only_the_process_that_looks(folder: Path) -> None:
    with (folder / layout.DATA_FILE).open("r+b") as file:
        file.truncate(5 * 4096)
    last = list(check_apart(folder))[-1]
    assert (last.invariant, last.where) == ("I10", "data.mdb")
    assert "SIGBUS" in last.message or "SIGSEGV" in last.message


def test_a_missing_registry_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryNotFoundError):
        list(check(tmp_path / "missing"))
    with pytest.raises(StoreError, match="there is no registry"):
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
        command = [sys.executable, "-m", "registry_store.check", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.returncode, done.stdout.splitlines(), done.stderr

    assert run(folder) == (0, [], b"")
    with opened(folder) as (_, put):
        put("aliases", b"cot", alias_codec.dump(Alias("a.Ghost", "client")))
    status, lines, _ = run(folder)
    decoded = [msgspec.json.decode(line) for line in lines]
    assert (status, decoded) == (
        1,
        [{"invariant": "I6", "where": "aliases/cot", "message": "means a.Ghost, which is not registered"}],
    )
    assert run()[0] == 2
    assert run(tmp_path / "missing")[0] == 2


@pytest.mark.stress
def test_a_million_modules_are_checked_in_bounded_memory(tmp_path: Path) -> None:
    """The address space beyond the map and the interpreter stays below 256 MiB."""
    count = 1_000_000
    with RegistryWriter(tmp_path) as writer:
        writer.register_modules([ModuleInfo(f"a.M{i}", capabilities=(f"c{i % 100}",)) for i in range(count)])
    script = (
        "import resource, sys; from registry_store.check import check; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "from registry_store.sharing import attach; "
        "assert list(check(sys.argv[1])) == []; "
        "import re; status = open('/proc/self/status').read(); "
        "print(int(re.search(r'RssAnon:\\s+(\\d+)', status)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=True)
    assert int(done.stdout) < 256 * 1024
