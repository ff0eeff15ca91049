"""Sequences at their end: what has no number left is refused, and look-ups visit the blocks that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryFullError, RegistryWriter, StoreError, UnknownModuleError
from dspy_registry.readers.plan import execute, plan_find
from dspy_registry.registry_store.changes import State, state_codec
from dspy_registry.registry_store.check.checker import check
from dspy_registry.registry_store.codec import seal
from dspy_registry.registry_store.layout import BLOCK_BITS, FORMAT_VERSION, LAST_SEQUENCE, META_STATE, sequence_row_key
from dspy_registry.registry_store.lookup import load_state, resolve
from dspy_registry.registry_store.order import store_row
from dspy_registry.registry_store.postings import load_posting, stored_blocks
from dspy_registry.registry_store.sharing import attach, detach
from tests.conftest import violations
from tests.support.daemon_process import daemon, module


def go_on_from(folder: Path, sequence: int) -> None:
    """As if all below had been given to modules that are gone."""
    environment = attach(folder, writable=True)
    try:
        with environment.write_gate, environment.lmdb.begin(write=True, db=environment.dbs.meta) as txn:
            state = load_state(txn, environment.dbs)
            moved = State(state.revision, state.committed_at, sequence)
            txn.put(META_STATE, state_codec.dump(moved, META_STATE, FORMAT_VERSION))
    finally:
        detach(environment)


@pytest.fixture
def nearly_full(registry_folder: Path) -> Path:
    """Two more modules can be registered."""
    RegistryWriter(registry_folder).close()
    go_on_from(registry_folder, LAST_SEQUENCE - 1)
    return registry_folder


# The last one


def test_i17_a_registration_without_a_sequence_left_is_refused_by_name_and_changes_nothing(nearly_full: Path) -> None:
    with RegistryWriter(nearly_full) as writer, Registry(nearly_full) as registry:
        writer.register_modules([ModuleInfo("a.One", category="mine"), ModuleInfo("a.Two", category="mine")])
        revision = writer.revision
        for late in (
            lambda: writer.register_module(ModuleInfo("a.Three")),
            lambda: writer.register_modules([ModuleInfo("a.One", category="yours"), ModuleInfo("a.Three")]),
        ):
            with pytest.raises(RegistryFullError, match="4294967296") as caught:
                late()
            assert isinstance(caught.value, StoreError)
            assert caught.value.remedy == RegistryFullError.remedy
        assert (writer.revision, registry.revision) == (revision, revision)
        assert registry.find_by_category("mine") == ("a.One", "a.Two")
        assert registry.get_module("Two").name == "a.Two"


def test_a_full_registry_is_changed_and_checked_as_any_other(nearly_full: Path) -> None:
    with RegistryWriter(nearly_full) as writer, Registry(nearly_full) as registry:
        writer.register_modules([ModuleInfo("a.One", category="mine"), ModuleInfo("a.Two", category="mine")])
        writer.register_module(ModuleInfo("a.Two", category="mine", estimated_duration=7))
        writer.set_alias("second", "a.Two")
        writer.set_implications({"reasoning": ("thought",)})
        writer.unregister_module("a.One")
        assert registry.find_by_category("mine") == ("a.Two",)
        assert "dspy.ReAct" in registry.find_by_capability("thought")
        assert violations(nearly_full) == []


def test_a_full_registry_costs_a_daemon_one_request(nearly_full: Path) -> None:
    with daemon(nearly_full) as served, served.client() as client:
        client.register_modules([module("a.One"), module("a.Two")])
        with pytest.raises(RegistryFullError):
            client.register_module(module("a.Three"))
        client.register_module(module("a.Two", estimated_duration=3))


def test_i17_a_version_that_has_no_number_is_refused_by_name(
    registry_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspy_registry.writer.entry.LAST_VERSION", 2)
    with RegistryWriter(registry_folder) as writer:
        for duration in range(2):
            writer.register_module(ModuleInfo("a.One", estimated_duration=duration))
        revision = writer.revision
        with pytest.raises(RegistryFullError, match=r"a\.One .*2"):
            writer.register_module(ModuleInfo("a.One", estimated_duration=2))
        writer.register_module(ModuleInfo("a.One", estimated_duration=1))
        assert writer.revision == revision
        writer.unregister_module("a.One")
        with pytest.raises(RegistryFullError):
            writer.register_module(ModuleInfo("a.One"))


def test_i5_a_row_beyond_all_sequences_is_found(tmp_path: Path) -> None:
    RegistryWriter(tmp_path / "registry").close()
    environment = attach(tmp_path / "registry", writable=True)
    with environment.write_gate, environment.lmdb.begin(write=True) as txn:
        key = sequence_row_key(LAST_SEQUENCE)
        txn.put(key, store_row(["dspy.ReAct"], key, FORMAT_VERSION), db=environment.dbs.sequences)
        txn.put(b"dspy.ReAct", seal(b"damaged"), db=environment.dbs.modules)
    detach(environment)
    found = check(tmp_path / "registry")
    assert any(each.invariant == "I5" and each.where.startswith("sequences/") for each in found)


# Look-ups


class Counted:
    """A transaction, or a cursor of one, that counts the keys it is asked for."""

    def __init__(self, inner: Any, keys: list[Any]) -> None:
        self._inner = inner
        self._keys = keys

    def cursor(self, database: Any) -> Counted:
        return Counted(self._inner.cursor(database), self._keys)

    def getmulti(self, keys: list[bytes]) -> Any:
        self._keys.extend(keys)
        return self._inner.getmulti(keys)

    def __iter__(self) -> Any:
        for item in self._inner:
            self._keys.append(item)
            yield item

    def __getattr__(self, name: str) -> Any:
        self._keys.append(name)
        return getattr(self._inner, name)


def test_look_ups_visit_the_blocks_of_a_term_and_not_all_numbers(nearly_full: Path) -> None:
    with RegistryWriter(nearly_full) as writer:
        writer.register_modules([ModuleInfo("a.One", capabilities=("reasoning",)), ModuleInfo("a.Two")])
        environment, visited = writer.store.environment, list[Any]()
        with environment.reading() as txn:
            counted = Counted(txn, visited)
            plan = plan_find("reasoning", None, "general", None, False, "medium", "high")
            assert execute(counted, environment.dbs, plan)[-1] == "a.One"
            assert resolve(counted, environment.dbs, "Two") == "a.Two"
            assert resolve(counted, environment.dbs, "predict") == "dspy.Predict"
            assert resolve(counted, environment.dbs, "nothing") is None
        assert len(visited) < 150
        with Registry(nearly_full) as registry, pytest.raises(UnknownModuleError):
            registry.get_module("nothing")


@pytest.mark.parametrize("apart", [1, 20, 40])
def test_a_posting_of_many_blocks_is_read_whole(registry_folder: Path, apart: int) -> None:
    """Modules in blocks that lie one, 20 and 40 apart; other terms have their keys before and after."""
    RegistryWriter(registry_folder).close()
    for number in range(1, 6):
        go_on_from(registry_folder, ((number * apart) << BLOCK_BITS) + number)
        with RegistryWriter(registry_folder) as writer:
            kinds = ("other", "wanted", "wanted_", "want", f"only{number}")
            writer.register_modules([ModuleInfo(f"a.{kind}{number}", capabilities=(kind,)) for kind in kinds])
    wanted = tuple(f"a.wanted{number}" for number in range(1, 6))
    with Registry(registry_folder) as registry:
        assert registry.find_by_capability("wanted") == wanted
        assert registry.find(capabilities="wanted", gpu=False, max_memory="very_high") == wanted
        assert registry.find_by_capability("wante") == ()
        assert registry.find_by_capability("only3") == ("a.only33",)
        assert registry.find_by_capability("want\0") == ()
    environment = attach(registry_folder)
    with environment.reading() as txn:
        blocks = stored_blocks(txn, environment.dbs)
        assert blocks == range(5 * apart + 1)
        one_by_one = load_posting(txn, environment.dbs, "pool:general", list(blocks))
        assert load_posting(txn, environment.dbs, "pool:general", blocks) == one_by_one
        assert len(one_by_one) >= 25
    detach(environment)
