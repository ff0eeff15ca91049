"""Registration order on disk: eight names to a row, whatever comes and goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry import CorruptRecordError, ModuleInfo, Registry, RegistryWriter
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.codec import database_seal, key_seal, seal
from dspy_registry.registry_store.order import GONE, NAMES_PER_ROW, load_row, store_row
from dspy_registry.registry_store.sharing import attach, detach

KEY = layout.sequence_row_key(1)
SEALED = seal(b"\xff", key_seal(database_seal(layout.SEQUENCES), KEY, layout.FORMAT_VERSION))
NAMES = st.lists(st.sampled_from([GONE, "dspy.Predict", "á", "a.b"]), min_size=1, max_size=NAMES_PER_ROW)


@given(NAMES)
def test_a_row_gives_back_its_names(names: list[str]) -> None:
    stored = store_row(names, KEY, layout.FORMAT_VERSION)
    if not any(names):
        assert stored is None
        return
    assert stored is not None
    read = load_row(stored, KEY, layout.FORMAT_VERSION)
    assert read[-1] != GONE
    assert read + [GONE] * (len(names) - len(read)) == names


def test_modules_keep_their_order_when_neighbours_go(registry_folder: Path) -> None:
    names = [f"a.M{number:02}" for number in range(30)]
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_modules([ModuleInfo(name, category="mine") for name in names])
        for gone in (*names[2:10], names[0], names[-1]):
            writer.unregister_module(gone)
            names.remove(gone)
            assert registry.find_by_category("mine") == tuple(names)
        writer.register_module(ModuleInfo(names[3], category="mine", estimated_duration=9))
        writer.unregister_module(names[4])
        writer.register_module(ModuleInfo(names[4], category="mine"))
        names.append(names.pop(4))
        assert registry.find_by_category("mine") == tuple(names)
        assert tuple(registry)[6:] == tuple(names)


def damage_row(folder: Path, number: int, value: bytes | None) -> None:
    environment = attach(folder, writable=True)
    try:
        with environment.write_gate, environment.lmdb.begin(write=True, db=environment.dbs.sequences) as txn:
            key = layout.sequence_row_key(number)
            assert txn.delete(key) if value is None else txn.put(key, value)
    finally:
        detach(environment)


@pytest.mark.parametrize("value", [SEALED, b"unsealed", None])
def test_i10_names_that_are_lost_are_an_error_and_never_left_out(tmp_path: Path, value: bytes | None) -> None:
    with RegistryWriter(tmp_path) as writer:
        writer.register_modules([ModuleInfo(f"a.M{number}", category="mine") for number in range(20)])
    damage_row(tmp_path, 1, value)
    with Registry(tmp_path) as registry:
        for _ in range(3):
            with pytest.raises(CorruptRecordError):
                registry.find_by_category("mine")
        assert registry.get_module("a.M5").category == "mine"


@pytest.mark.parametrize("value", [SEALED, b"unsealed"])
def test_a_damaged_row_is_made_anew_from_the_records_it_names(registry_folder: Path, value: bytes) -> None:
    names = [f"a.M{number}" for number in range(20)]
    with RegistryWriter(registry_folder) as writer:
        writer.register_modules([ModuleInfo(name, category="mine") for name in names])
    damage_row(registry_folder, 1, value)
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.unregister_module("a.M5")
        names.remove("a.M5")
        assert registry.find_by_category("mine") == tuple(names)
