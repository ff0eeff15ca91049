"""A registry that changes: its order, what was returned before, snapshots, bounded caches, watching."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter, Snapshot
from dspy_registry.readers.cache import Cache
from dspy_registry.registry_store.codec import open_record
from tests.support import queried
from tests.support.queried import MODULES

folder = queried.folder


def test_i19_results_come_in_the_order_of_first_registration(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        names = ["z.Last", "a.First", "m.Middle"]
        for name in names:
            writer.register_module(ModuleInfo(name, capabilities=("ordered",)))
        assert registry.find_by_capability("ordered") == tuple(names)
        for name in reversed(names):  # updates change nothing of it
            writer.register_module(ModuleInfo(name, category="changed", capabilities=("more", "ordered")))
        assert registry.find_by_capability("ordered") == registry.find(category="changed") == tuple(names)
        assert list(registry)[6:] == names
        writer.unregister_module("z.Last")
        writer.register_module(ModuleInfo("z.Last", capabilities=("ordered",)))
        assert registry.find_by_capability("ordered") == ("a.First", "m.Middle", "z.Last")
        assert list(registry)[6:] == ["a.First", "m.Middle", "z.Last"]


def test_i19_a_module_that_goes_and_comes_back_in_one_commit_is_last_for_every_reader(registry_folder: Path) -> None:
    """The log calls it an update, and yet the order of all modules is another."""
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        for _ in range(3):
            assert next(iter(registry)) == "dspy.Predict"

        def there_and_back(draft: Any) -> None:
            draft.unregister("dspy.Predict")
            draft.register(ModuleInfo("dspy.Predict"))

        writer.store.committer.commit(there_and_back)
        assert registry.get_module("dspy.ReAct").pool_type == "general"  # catches up with the change
        assert list(registry)[-1] == registry.find()[-1] == "dspy.Predict"


def test_i8_history_is_bounded_even_within_one_batch(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        for versions in (40, 3, 25):
            writer.register_modules([ModuleInfo("a.B", estimated_duration=i) for i in range(versions)])
        assert registry.describe("a.B").provenance.version == 68
    # the fixture's check finds more than sixteen versions


def test_i20_what_was_returned_outlives_everything_it_came_from(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        writer.register_module(MODULES[1])
        registry = Registry(registry_folder, cache_size=0)
        with registry.snapshot() as snapshot:
            kept = [
                *(registry["m.M1"], snapshot["m.M1"], registry.describe("m.M1"), snapshot.describe("M1")),
                *(registry.find(("a",)), snapshot.find_by_category("beta"), snapshot.changes_since(0), list(snapshot)),
            ]
            copied = bytes(snapshot.raw("m.M1"))
        before = repr(kept)
        registry.close()
        for i in range(300):  # every page that could be used again has been
            writer.register_module(ModuleInfo("m.M1", metadata={"x": "y" * 5000, "i": i}))
        writer.close()
        gc.collect()
        assert repr(kept) == before
        assert open_record(copied, "m.M1").info == MODULES[1]


def test_i4_a_snapshot_stays_at_its_revision(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        snapshots: list[tuple[Snapshot, dict[str, ModuleInfo], tuple[str, ...]]] = []
        for i in range(12):
            writer.register_module(ModuleInfo(f"a.M{i}", capabilities=("x",)))
            writer.register_module(ModuleInfo("a.Same", estimated_duration=i))
            snapshot = registry.snapshot()
            snapshots.append((snapshot, dict(registry), registry.find_by_capability("x")))
            assert snapshot.revision == registry.revision == writer.revision
        writer.unregister_module("a.Same")
        for number, (snapshot, model, found) in enumerate(snapshots):
            assert dict(snapshot) == model
            assert snapshot.find_by_capability("x") == found
            assert snapshot["a.Same"].estimated_duration == number
            assert len(snapshot) == len(model)
            assert snapshot.changes_since(0)[-1].revision == snapshot.revision
            snapshot.close()


def test_i4_both_transactions_of_a_snapshot_are_of_one_commit(registry_folder: Path) -> None:
    """One copies, one gives views; a commit may fall between their beginnings."""
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        environment, commits = writer.store.environment, iter(range(3))
        begin = environment.begin_reading

        def begin_after_a_commit(**options: bool) -> Any:
            for number in commits:
                writer.register_module(ModuleInfo("a.B", estimated_duration=number))
                break
            return begin(**options)

        environment.begin_reading = begin_after_a_commit  # type: ignore[method-assign]
        with registry.snapshot() as snapshot:
            assert open_record(snapshot.raw("a.B"), "a.B") == snapshot.describe("a.B")
        assert next(commits, None) is None


def test_a_small_cache_bounds_what_is_held_and_answers_the_same(folder: Path) -> None:
    for size in (0, 1, 2, 5, 16):
        with Registry(folder, cache_size=size) as registry:
            for _ in range(3):
                for info in MODULES:
                    assert [registry[info.name] for _ in range(20)] == [info] * 20
                    assert registry.find(category=info.category, max_memory=info.requirements.memory)
            cache = registry._cache
            assert len(cache.records) <= size
            assert len(cache.marks) <= size
            held = (cache.by_capability, cache.by_category, cache.by_arguments)
            assert sum(len(names) for answers in held for names in answers.values()) <= 8 * size


def test_a_full_cache_forgets_an_eighth_the_oldest() -> None:
    cache = Cache(16)
    for number in range(17):
        cache.put(str(number), MODULES[0])
    assert list(cache.records) == [str(number) for number in range(2, 17)]


def test_a_working_set_that_does_not_fit_has_one_read_in_32_kept() -> None:
    cache = Cache(4)
    marked = [cache.is_due(str(number)) for number in range(4)]
    passed = [cache.is_due(str(number)) for number in range(4, 4 + 64)]
    assert not any(marked)
    assert [at for at, due in enumerate(passed) if due] == [31, 63]
    assert not any(Cache(0).is_due(str(number)) for number in range(100))


def test_what_a_cache_holds_stays_bounded_however_often_things_change(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder, cache_size=64) as registry:
        for i in range(400):
            writer.register_module(ModuleInfo("a.B", capabilities=("x",) if i % 2 else ("y",)))
            for asked in ("x", "y"):
                assert registry.find(asked, category="unknown", pool_type="general") == (
                    ("a.B",) if (asked == "x") == bool(i % 2) else ()
                )
                registry.find_by_capability(f"never_{i}")
        cache = registry._cache
        assert sum(map(len, cache._dependents.values())) <= 8 * 64 * 3  # one entry for each term of an answer
        assert len(cache.by_capability) + len(cache.by_arguments) <= 8 * 64


def test_watching_yields_every_change_in_order(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        start = registry.revision
        watching = registry.watch(since=start, timeout=0)
        writer.register_module(ModuleInfo("a.B"))
        writer.register_module(ModuleInfo("a.B", category="c"))
        writer.unregister_module("a.B")
        changes = list(watching)
        assert [change.revision for change in changes] == [start + 1, start + 2, start + 3]
        assert [(m.name, m.action, m.version) for change in changes for m in change.modules] == [
            ("a.B", "registered", 1),
            ("a.B", "updated", 2),
            ("a.B", "unregistered", 2),
        ]
        assert list(registry.watch(timeout=0)) == []
        assert [change.everything for change in registry.watch(since=start + 99, timeout=0)] == [True]

        async def collect() -> list[int]:
            return [change.revision async for change in registry.watch_async(since=start, timeout=0)]

        assert asyncio.run(collect()) == [start + 1, start + 2, start + 3]


def test_i9_a_watcher_that_comes_too_late_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dspy_registry.registry_store import layout

    monkeypatch.setattr(layout, "CHANGES_KEPT", 256)  # commits by the thousand would be needed otherwise
    with RegistryWriter(tmp_path) as writer, Registry(tmp_path) as registry:
        for i in range(600):
            writer.register_module(ModuleInfo("a.B", estimated_duration=i))
        first, *rest = registry.watch(since=1, timeout=0)
        assert first.everything
        assert [change.revision for change in rest] == list(range(first.revision + 1, registry.revision + 1))
        assert 256 <= len(rest) <= 512
