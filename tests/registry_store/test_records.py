"""Bytes of what is stored: checksums, evolution within a format version, plain form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry import (
    Change,
    CorruptRecordError,
    FormatVersionError,
    ModuleChange,
    ModuleInfo,
    Provenance,
    Registry,
    RegistryWriter,
    Requirements,
    StoredModule,
)
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.changes import Alias, State, alias_codec, change_codec, state_codec
from dspy_registry.registry_store.check.checker import check
from dspy_registry.registry_store.codec import (
    INTACT,
    Sealed,
    crc32,
    database_seal,
    encode,
    key_seal,
    open_record,
    seal,
    seal_record,
    unseal,
)
from dspy_registry.registry_store.layers import Layer, layer_codec
from dspy_registry.registry_store.lookup import info_of
from dspy_registry.registry_store.postings import BitMap, load_block, store_block
from dspy_registry.registry_store.records import from_plain, to_plain
from dspy_registry.registry_store.sharing import attach, detach
from tests.support.raw_access import behind

FULL = ModuleInfo(
    name="acme.Full",
    category="retrieval",
    capabilities=("semantic_search", "embeddings"),
    requirements=Requirements(memory="high", compute="very_high", gpu=True, extra={"vram_gb": 24}),
    pool_type="neural",
    estimated_duration=1234,
    native_available=True,
    examples=("Full()(query='x')",),
    metadata={"cost_usd_per_call": 0.01, "nested": {"list": [1, None, True, "ü", "\0"]}},
)
FORMAT = layout.FORMAT_VERSION
KEY = layout.posting_key(b"gpu:no", 0)
KEPT = Provenance(version=3, revision=17, updated_at=1_700_000_000_000, source="client", sequence=9)


# Checksums


@given(st.binary(max_size=2000))
def test_a_sealed_value_has_one_constant_checksum(payload: bytes) -> None:
    value = seal(payload)
    assert crc32(value) == INTACT
    assert unseal(value, "it") == payload
    assert bytes(unseal(memoryview(value), "it")) == payload


@given(st.binary(max_size=300), st.data())
def test_i10_a_flipped_bit_is_never_taken_for_a_value(payload: bytes, data: st.DataObject) -> None:
    value = bytearray(seal(payload))
    at = data.draw(st.integers(0, len(value) * 8 - 1))
    value[at // 8] ^= 1 << at % 8
    with pytest.raises(CorruptRecordError, match="a thing"):
        unseal(bytes(value), "a thing")


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=40), st.sampled_from(layout.DATABASES))
def test_i24_a_value_verifies_under_its_key_alone(payload: bytes, key: bytes, database: bytes) -> None:
    after = key_seal(database_seal(database), key, 2)
    value = seal(payload, after)
    assert unseal(value, "it", after) == payload
    assert value[-4:] == crc32(database + b"\0" + key + payload).to_bytes(4, "little")
    for other in (database_seal(database), key_seal(database_seal(b"other"), key, 2), crc32(key + b"1", after), 0):
        if other != after:
            with pytest.raises(CorruptRecordError):
                unseal(value, "it", other)
    assert seal(payload, key_seal(database_seal(database), key, 1)) == seal(payload)  # as release 0.1.0 stores it


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_i10_a_record_cut_short_names_the_module(cut: int) -> None:
    value = seal_record(encode(FULL), KEPT, FORMAT)[:cut]
    for opened in (open_record, info_of):
        with pytest.raises(CorruptRecordError, match=r"acme\.Full"):
            opened(value, "acme.Full")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x93",
        b"\x93\x90\x90\xc4\x04",
        encode([1, 2]) + b"\xc4\x04",
        b"\x93\x91\xa1\xff\x95\x01\x01\x01\xa0\x01\xc4\x04",
    ],
)
def test_i10_bytes_that_are_no_record_are_named_though_their_checksum_fits(payload: bytes) -> None:
    with pytest.raises(CorruptRecordError, match=r"acme\.Full"):
        open_record(seal(payload), "acme.Full")


@pytest.mark.parametrize(
    ("codec", "what"),
    [(change_codec, "change log"), (state_codec, "state"), (alias_codec, "alias"), (layer_codec, "layer")],
)
def test_i10_every_codec_names_what_it_cannot_read(codec: Sealed, what: str) -> None:
    for value in (b"", b"junk", seal(b""), seal(b"\xc1"), seal(encode(["\ud800".encode("utf-8", "surrogatepass")]))):
        for format in (1, 2):
            with pytest.raises(CorruptRecordError, match=what):
                codec.load(value, b"key", format)


def test_i10_a_posting_that_cannot_be_read_is_an_error() -> None:
    for format in (1, 2):
        assert load_block(store_block(BitMap([1, 8000]), KEY, format), KEY, format) == BitMap([1, 8000])
        for value in (b"", seal(b""), seal(b"junk!"), store_block(BitMap([1]), KEY, format)[:-1]):
            with pytest.raises(CorruptRecordError):
                load_block(value, KEY, format)


def test_a_record_is_read_back_in_full() -> None:
    value = seal_record(encode(FULL), KEPT, FORMAT)
    assert open_record(value, "acme.Full") == StoredModule(FULL, KEPT)
    assert info_of(value, "acme.Full") == FULL
    assert msgspec.msgpack.decode(value)[2] == value[-4:]  # the checksum is an element of the array itself


# Evolution: what a later release of the same format writes, and what an earlier one wrote


def newer(encoded: bytes, *more: Any) -> bytes:
    """The same array with fields added at its end."""
    return encode([*msgspec.msgpack.decode(encoded), *more])


def older(encoded: bytes, fields: int) -> bytes:
    """The same array with only its first fields."""
    return encode(msgspec.msgpack.decode(encoded)[:fields])


def test_i18_a_later_releases_record_is_read() -> None:
    info = msgspec.msgpack.decode(encode(FULL))
    info[3] = [*info[3], {"later": "requirement"}]
    value = seal(b"\x93" + encode([*info, "later field", {"a": 1}]) + newer(encode(KEPT), 7) + b"\xc4\x04")
    assert open_record(value, "acme.Full") == StoredModule(FULL, KEPT)
    assert info_of(value, "acme.Full") == FULL


@pytest.mark.parametrize("fields", range(1, 10))
def test_i18_an_earlier_releases_record_takes_the_defaults(fields: int) -> None:
    value = seal(b"\x93" + older(encode(FULL), fields) + encode(KEPT) + b"\xc4\x04")
    names = ModuleInfo.__struct_fields__[:fields]
    expected = ModuleInfo(**{name: getattr(FULL, name) for name in names})
    assert open_record(value, "acme.Full").info == info_of(value, "acme.Full") == expected


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (change_codec, Change(3, 5, (ModuleChange("a.B", "updated", 2),), ("a.B",), ("all:",))),
        (state_codec, State(3, 5, 9)),
        (alias_codec, Alias("a.B", "client")),
        (layer_codec, Layer("core", {"category": "x"})),
    ],
)
def test_i18_other_rows_of_a_later_release_are_read(codec: Sealed, value: Any) -> None:
    assert codec.load(seal(newer(encode(value), "more", [1])), b"key", 1) == value


def test_i24_another_modules_record_is_an_error_that_names_both(tmp_path: Path) -> None:
    with RegistryWriter(tmp_path) as writer:
        writer.register_modules([FULL, ModuleInfo("acme.Other")])
        with behind(writer) as (txn, dbs):
            txn.put(b"acme.Other", txn.get(b"acme.Full", db=dbs.modules), db=dbs.modules)
        with Registry(tmp_path) as registry, registry.snapshot() as snapshot:
            for read in (registry.get_module, registry.describe, snapshot.get_module, snapshot.describe):
                for _ in range(3):
                    with pytest.raises(CorruptRecordError, match=r"under acme\.Other stands the record of acme\.Full"):
                        read("acme.Other")
            assert registry.get_module("acme.Full") == snapshot.get_module("acme.Full") == FULL
        writer.unregister_module("acme.Other")
        writer.register_module(ModuleInfo("acme.Other"))
    assert list(check(tmp_path)) == []


@pytest.mark.parametrize(
    "kept", [KEPT, msgspec.structs.replace(KEPT, by=(7, 9)), msgspec.structs.replace(KEPT, program=b"p")]
)
def test_a_provenance_is_read_back_and_cut_to_what_its_format_has(kept: Provenance) -> None:
    assert open_record(seal_record(encode(FULL), kept, 2), "acme.Full").provenance == kept
    assert open_record(seal_record(encode(FULL), kept, 1), "acme.Full").provenance == KEPT


def test_i18_an_earlier_releases_change_takes_the_defaults() -> None:
    assert change_codec.load(seal(encode([3, 5])), KEY, 1) == Change(3, 5)


def test_i18_a_registry_that_a_later_release_wrote_to_is_read_and_written(registry_folder: Path) -> None:
    later = seal(b"\x93" + newer(encode(FULL), "later field") + newer(encode(KEPT), 1) + b"\xc4\x04")
    with RegistryWriter(registry_folder) as writer:
        writer.register_module(FULL)
        kept = open_with(
            registry_folder, lambda txn, dbs: open_record(txn.get(b"acme.Full", None, dbs.modules), "acme.Full")
        )
        later = seal(b"\x93" + newer(encode(FULL), "later") + newer(encode(kept.provenance), 1) + b"\xc4\x04")
        with behind(writer) as (txn, dbs):
            txn.put(b"acme.Full", later, db=dbs.modules)
        with Registry(registry_folder) as registry:
            assert registry["acme.Full"] == FULL
            assert registry.describe("acme.Full").provenance == kept.provenance
            assert writer.register_module(FULL) == kept.provenance.revision  # the same to this release
            writer.register_module(msgspec.structs.replace(FULL, estimated_duration=1))
            assert registry["acme.Full"].estimated_duration == 1
    assert list(check(registry_folder)) == []


def open_with(folder: Path, read: Any) -> Any:
    environment = attach(folder)
    try:
        with environment.reading() as txn:
            return read(txn, environment.dbs)
    finally:
        detach(environment)


def test_i18_another_format_version_is_refused_by_reader_and_writer(tmp_path: Path) -> None:
    with RegistryWriter(tmp_path) as writer:
        environment = writer.store.environment
        with environment.write_gate, environment.lmdb.begin(write=True) as txn:
            txn.put(layout.META_FORMAT, b"3", db=environment.dbs.meta)
            txn.drop(environment.dbs.usage)  # another format may have other databases
    for opened in (Registry, RegistryWriter):
        with pytest.raises(FormatVersionError) as caught:
            opened(tmp_path)
        assert (caught.value.found, caught.value.supported) == (3, 2)
        assert caught.value.remedy


# Plain form


@pytest.mark.parametrize("info", [FULL, ModuleInfo("a.B")], ids=["full", "defaults"])
def test_plain_form_is_json_ready_and_reversible(info: ModuleInfo) -> None:
    plain = to_plain(info)
    assert from_plain(plain) == info
    assert json.loads(msgspec.json.encode(plain))["requirements"] == {
        **info.requirements.extra,
        "memory": info.requirements.memory,
        "compute": info.requirements.compute,
        "gpu": info.requirements.gpu,
    }


def test_plain_form_shares_nothing_with_the_record() -> None:
    plain = to_plain(FULL)
    plain["capabilities"].append("more")
    plain["metadata"]["more"] = 1
    plain["requirements"]["more"] = 1
    assert from_plain(to_plain(FULL)) == FULL
    assert "more" not in FULL.metadata


def test_plain_form_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError):
        from_plain({"name": "a.B", "unknown": 1})
    with pytest.raises(TypeError):
        from_plain({"category": "x"})


def test_records_are_frozen() -> None:
    with pytest.raises(AttributeError):
        FULL.category = "other"  # type: ignore[misc]
