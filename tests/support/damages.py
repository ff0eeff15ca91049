"""Every kind of damage to stored bytes, with the invariant it breaks and where the check must find it."""

from __future__ import annotations

from collections.abc import Callable
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

from dspy_registry import ModuleChange, ModuleInfo, Provenance
from dspy_registry.registry_store import layout, meta_pages
from dspy_registry.registry_store.changes import (
    Alias,
    State,
    alias_codec,
    change_codec,
    implications_codec,
    state_codec,
)
from dspy_registry.registry_store.codec import Sealed, database_seal, encode, key_seal, seal, seal_record
from dspy_registry.registry_store.labels import Label, label_codec
from dspy_registry.registry_store.layers import Layer, layer_codec
from dspy_registry.registry_store.layout import FORMAT_VERSION as FORMAT
from dspy_registry.registry_store.order import GONE, NAMES_PER_ROW, load_row, store_row
from dspy_registry.registry_store.postings import BitMap, load_block, store_block
from tests.support.raw_access import (
    Get,
    Put,
    change_at,
    flipped,
    posting,
    rewrite_change,
    rewritten,
    sequence_of,
    state,
)


def flip(database: str, key: bytes) -> Callable[[Get, Put], None]:
    """One bit of a value."""
    return lambda get, put: put(database, key, flipped(get(database, key)))


def replace_record(name: str, /, **changes: Any) -> Callable[[Get, Put], None]:
    """A record with other fields or another provenance."""
    return lambda get, put: put("modules", name.encode(), rewritten(get, name, **changes))


def put_row(database: str, key: bytes, value: bytes | None) -> Callable[[Get, Put], None]:
    """Another value for a key; None: no value."""
    return lambda _, put: put(database, key, value)


def put_sealed(database: str, key: bytes, payload: bytes) -> Callable[[Get, Put], None]:
    """Another value for a key, well sealed."""
    return put_row(database, key, seal(payload, key_seal(database_seal(database.encode()), key, FORMAT)))


def put_dumped(database: str, key: bytes, codec: Sealed, value: Any) -> Callable[[Get, Put], None]:
    """Another value for a key, as the registry would store it."""
    return put_row(database, key, codec.dump(value, key, FORMAT))


def put_label(name: str, label: str, runs: tuple[tuple[int, int], ...]) -> Callable[[Get, Put], None]:
    """A label with any runs of buckets."""
    return put_dumped("labels", layout.label_key(name, label), label_codec, Label(runs))


def put_block(term: str, *sequences: int, key: bytes | None = None) -> Callable[[Get, Put], None]:
    """Another block of a posting. `key` is None: the first block of this term."""
    at = posting(term) if key is None else key
    return put_row("postings", at, store_block(BitMap(sequences), at, FORMAT) if sequences else sealed_nothing(at))


def sealed_nothing(key: bytes) -> bytes:
    """A block without members."""
    return seal(BitMap().serialize(), key_seal(database_seal(b"postings"), key, FORMAT))


def drop_sequence(get: Get, put: Put) -> None:
    """A module's name missing from its row."""
    rename(get, put, sequence_of(get, "a.Twenty"), GONE)


def name_twice(get: Get, put: Put) -> None:
    """One name at two sequences."""
    rename(get, put, 3, "dspy.ReAct")


def rename(get: Get, put: Put, sequence: int, name: str) -> None:
    """Another name at a sequence."""
    number, place = divmod(sequence, NAMES_PER_ROW)
    key = layout.sequence_row_key(number)
    names = load_row(get("sequences", key), key, FORMAT)
    names[place] = name
    put("sequences", key, store_row(names, key, FORMAT))


def row_of_names(number: int, *names: str) -> Callable[[Get, Put], None]:
    """A whole row of other names."""
    return put_sealed("sequences", layout.sequence_row_key(number), "\0".join(names).encode())


def lose_a_member(get: Get, put: Put) -> None:
    """A module missing from a posting."""
    key = posting("capability:reasoning")
    block = load_block(get("postings", key), key, FORMAT)
    block.remove(sequence_of(get, "dspy.ReAct"))
    put("postings", key, store_block(block, key, FORMAT))


def gain_a_member(get: Get, put: Put) -> None:
    """A module in a posting that it does not belong to."""
    key = posting("capability:reasoning")
    block = load_block(get("postings", key), key, FORMAT)
    block.add(sequence_of(get, "dspy.Predict"))
    put("postings", key, store_block(block, key, FORMAT))


def exchange_a_member(get: Get, put: Put) -> None:
    """A posting of the right length with a wrong member."""
    lose_a_member(get, put)
    gain_a_member(get, put)


def misplace_a_block(get: Get, put: Put) -> None:
    """A block of a posting under another number."""
    old, new = posting("category:mine"), posting("category:mine", 7)
    put("postings", new, store_block(load_block(get("postings", old), old, FORMAT), new, FORMAT))
    put("postings", old, None)


def declare_words(implications: dict[str, tuple[str, ...]]) -> Callable[[Get, Put], None]:
    """Another vocabulary, which the postings do not fit."""
    return put_dumped("meta", layout.META_VOCABULARY, implications_codec, {"client": implications})


def go_back(get: Get, put: Put) -> None:
    """A head that names the revision before."""
    name_revision(get, put, state(get).revision - 1)


def skip_a_revision(get: Get, put: Put) -> None:
    """A head that names a revision that was never made."""
    name_revision(get, put, state(get).revision + 1)


def name_revision(get: Get, put: Put, revision: int) -> None:
    """Another revision in the head."""
    head = State(revision, 0, state(get).next_sequence)
    put_dumped("meta", layout.META_STATE, state_codec, head)(get, put)


def unlog_a_module(get: Get, put: Put) -> None:
    """A change that leaves a module out."""
    rewrite_change(get, put, state(get).revision, modules=())


def misreport_a_version(get: Get, put: Put) -> None:
    """A change with a wrong version."""
    change = change_at(get, state(get).revision)
    modules = (ModuleChange("dspy.Predict", "updated", 9), *change.modules[1:])
    rewrite_change(get, put, change.revision, modules=modules)


def report_a_ghost(get: Get, put: Put) -> None:
    """A change with a module that does not exist."""
    change = change_at(get, state(get).revision)
    ghost = ModuleChange("a.Ghost", "registered", 1)
    rewrite_change(get, put, change.revision, modules=(*change.modules, ghost), keys=(*change.keys, "a.Ghost"))


def bring_back(_: Get, put: Put) -> None:
    """A record of a module that was unregistered."""
    info = ModuleInfo("a.Gone")
    put("modules", b"a.Gone", seal_record(encode(info), Provenance(1, 1, 0, 0), FORMAT))


def change_of_another(get: Get, put: Put) -> None:
    """A change under another revision, sealed for it."""
    put_dumped("changes", layout.revision_key(4), change_codec, change_at(get, 5))(get, put)


def exchange(database: str, one: bytes, other: bytes) -> Callable[[Get, Put], None]:
    """Two values, each under the key of the other."""

    def exchanged(get: Get, put: Put) -> None:
        first, second = get(database, one), get(database, other)
        put(database, one, second)
        put(database, other, first)

    return exchanged


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
    ("I5", "postings/category:none", put_block("category:none")),
    ("I5", "postings/pool:ghosts", put_block("pool:ghosts", 77)),
    ("I5", "postings/junk", put_block("", 1, key=b"junk")),
    ("I5", "postings/capability:z", put_row("postings", posting("capability:z"), None)),
    ("I5", "postings/category:", replace_record("dspy.ReAct", category="elsewhere")),
    ("I5", "postings/capability:z", declare_words({"x": ("y",)})),
    ("I5", "modules/a.Gone", bring_back),
    ("I6", "aliases/cot", put_dumped("aliases", b"cot", alias_codec, Alias("a.Ghost", "client"))),
    ("I6", "aliases/", put_dumped("aliases", b"\xff\n", alias_codec, Alias("dspy.Predict", "client"))),
    ("I7", "layers/a.Layered", replace_record("a.Layered", source="core")),
    ("I7", "layers/a.Layered", replace_record("a.Layered", estimated_duration=5)),
    (
        "I7",
        "layers/a.Layered",
        put_dumped("layers", layout.layer_key("a.Layered", "discovered"), layer_codec, Layer("core", {})),
    ),
    ("I7", "modules/dspy.ReAct", put_row("layers", layout.layer_key("dspy.ReAct", "core"), None)),
    (
        "I7",
        "layers/a.Ghost",
        put_dumped("layers", layout.layer_key("a.Ghost", "core"), layer_codec, Layer("core", {})),
    ),
    ("I8", "labels/a.Twenty/gone", put_label("a.Twenty", "gone", ((1, 10_000),))),
    ("I8", "labels/a.Twenty/short", put_label("a.Twenty", "short", ((20, 9),))),
    ("I8", "labels/a.None/lost", put_label("a.None", "lost", ((1, 10_000),))),
    ("I8", "labels/a.Twenty/9", put_label("a.Twenty", "9", ((20, 10_000),))),
    ("I8", "modules/a.Twenty", put_row("history", layout.versioned_key("a.Twenty", 19), None)),
    ("I8", "history/a.Twenty", put_row("history", layout.versioned_key("a.Twenty", 12), None)),
    ("I8", "history/a.Twenty", put_row("history", layout.versioned_key("a.Twenty", 4), None)),
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
    ("I10", "sequences/0", put_sealed("sequences", layout.sequence_row_key(0), b"\xff")),
    ("I10", "postings/gpu:no", flip("postings", posting("gpu:no"))),
    ("I10", "postings/gpu:no", put_sealed("postings", posting("gpu:no"), b"junk!")),
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
    ("I23", "data.mdb", put_row("meta", layout.META_FORMAT, b"one")),
    (
        "I10",
        "meta",
        declare_words({"a": ("b",), "b": ("a",)}),
    ),
]


def hide_the_newest_state(folder: Path) -> None:
    """Turns one bit of the older meta page's transaction number: LMDB goes by it, and the last commit is gone."""
    with (folder / layout.DATA_FILE).open("r+b") as file:
        pages = [meta_pages.parse_meta_page(file.read(PAGESIZE)) for _ in range(2)]
        older = min(range(2), key=lambda number: pages[number].transaction)  # type: ignore[union-attr]
        file.seek(older * PAGESIZE + 151)
        file.write(b"\x20")
