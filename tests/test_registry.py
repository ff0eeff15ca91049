"""Queries: a mapping, conditions in any combination, registration order, copies that may be kept."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
from collections.abc import Mapping
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from readers import Registry, Snapshot
from readers.query import plan_find
from readers.routing import CostWeights
from registry_store import InvalidArgumentError, ModuleInfo, Requirements, StoreClosedError
from registry_store.codec import open_record
from registry_store.paths import registry_path
from registry_store.vocabulary import LEVELS
from writer import RegistryWriter

MODULES = tuple(
    ModuleInfo(
        f"m.M{number}",
        category=("alpha", "beta")[number % 2],
        capabilities=(("a",), ("a", "b"), ("complex_reasoning",))[number % 3],
        requirements=Requirements(memory=LEVELS[number % 4], compute=LEVELS[number // 4 % 4], gpu=number % 5 == 0),
        pool_type=("general", "neural")[number // 2 % 2],
        native_available=number % 7 == 0,
    )
    for number in range(48)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("queries") / "registry"
    with RegistryWriter(path) as writer:
        writer.register_modules(MODULES)
    return path


@pytest.fixture(params=["registry", "uncached", "snapshot"])
def queries(folder: Path, request: pytest.FixtureRequest) -> Any:
    with Registry(folder, cache_size=0 if request.param == "uncached" else 8192) as registry:
        if request.param == "snapshot":
            with registry.snapshot() as snapshot:
                yield snapshot
        else:
            yield registry


def fits(info: ModuleInfo, conditions: dict[str, Any]) -> bool:
    """What `find` promises, in the simplest words."""
    needs = info.requirements
    implied = {"complex_reasoning": ("complex_reasoning", "reasoning")}
    has = {further for word in info.capabilities for further in implied.get(word, (word,))}
    wanted = conditions["capabilities"]
    levels = (("max_memory", needs.memory), ("max_compute", needs.compute))
    exact = (
        ("category", info.category),
        ("pool_type", info.pool_type),
        ("native", info.native_available),
        ("gpu", needs.gpu),
    )
    return (
        has.issuperset((wanted,) if isinstance(wanted, str) else wanted)
        and all(conditions[name] in (None, value) for name, value in exact)
        and all(
            conditions[name] is None or LEVELS.index(value) <= LEVELS.index(conditions[name]) for name, value in levels
        )
    )


CHOICES: dict[str, tuple[Any, ...]] = {
    "capabilities": ((), "reasoning", ("a", "b")),
    "category": (None, "beta"),
    "pool_type": (None, "neural"),
    "native": (None, True, False),
    "gpu": (None, True, False),
    "max_memory": (None, "low", "high"),
    "max_compute": (None, "medium"),
}


def test_every_combination_of_conditions(queries: Any) -> None:
    core = [queries[name] for name in list(queries)[:6]]
    for values in product(*CHOICES.values()):
        conditions = dict(zip(CHOICES, values, strict=True))
        expected = tuple(info.name for info in (*core, *MODULES) if fits(info, conditions))
        for _ in range(2):
            assert queries.find(**conditions) == expected


def test_conditions_may_be_given_in_any_form(queries: Any) -> None:
    expected = queries.find(("a", "b"))
    assert expected
    for capabilities in (["a", "b"], ("b", "a"), {"a", "b"}, iter(["a", "b"]), dict.fromkeys("ab"), ("a", "b", "a")):
        assert queries.find(capabilities) == expected
    assert queries.find() == tuple(queries)
    assert queries.find(capabilities=[]) == tuple(queries)
    assert queries.find(capabilities=None) == queries.find(capabilities=None) == tuple(queries)
    assert queries.find(None, pool_type="optimizer") == queries.find(pool_type="optimizer") != ()
    assert queries.find(capabilities="a") == queries.find(["a"]) == queries.find_by_capability("a")
    assert queries.find(max_memory="very_high") == tuple(queries)


def test_a_list_changed_between_two_calls_is_asked_anew(queries: Any) -> None:
    wanted = ["a"]
    assert queries.find(wanted) == queries.find_by_capability("a")
    wanted.append("b")
    assert queries.find(wanted) == queries.find(("a", "b"))


@pytest.mark.parametrize("level", ["huge", "", "LOW", 1])
def test_another_level_is_an_error_that_lists_the_four(queries: Any, level: Any) -> None:
    for condition in ("max_memory", "max_compute"):
        with pytest.raises(InvalidArgumentError, match="is not one of low, medium, high, very_high"):
            queries.find(**{condition: level})


def test_a_plan_is_terms() -> None:
    assert plan_find(("a",), None, "p", False, None, "medium", None) == (
        ("capability:a",),
        ("pool:p",),
        ("native:no",),
        ("memory:low", "memory:medium"),
    )


def test_it_is_a_mapping_of_full_names(queries: Any) -> None:
    assert isinstance(queries, Mapping)
    assert len(queries) == 54 == len(list(queries)) == len(queries.keys()) == len(dict(queries))
    assert list(queries)[6:] == [info.name for info in MODULES]
    assert tuple(queries.values())[6:] == MODULES
    assert dict(queries.items())["m.M3"] == MODULES[3]
    assert "m.M3" in queries
    assert "M3" not in queries
    assert None not in queries
    assert 3 not in queries
    assert queries.get("M3") is None
    assert queries.get_module("M3") == MODULES[3]
    with pytest.raises(KeyError):
        queries["M3"]
    assert queries == dict(queries)


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


def test_i20_raw_is_a_view_for_the_length_of_the_snapshot(folder: Path) -> None:
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        raw = snapshot.raw("m.M2")
        assert isinstance(raw, memoryview)
        assert raw.readonly
        assert open_record(raw, "m.M2") == snapshot.describe("m.M2")
        with pytest.raises(TypeError):
            raw[0] = 0
        with pytest.raises(KeyError):
            snapshot.raw("M2")
        raw.release()


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


def test_a_closed_thing_says_so(folder: Path) -> None:
    registry = Registry(folder)
    snapshot = registry.snapshot()
    registry.get_module("m.M1")
    registry.get_module("m.M1")
    registry.close()
    registry.close()
    assert snapshot["m.M1"] == MODULES[1]  # a snapshot outlives the registry it was taken from
    snapshot.close()
    snapshot.close()
    for closed in (registry, snapshot):
        for ask in (
            *(lambda q: q.get_module("m.M1"), lambda q: q.find(("a",)), lambda q: q.find_by_capability("a"), list, len),
            *(lambda q: q.describe("m.M1"), lambda q: q.get_pool_type("m.M1"), lambda q: q.committed_at),
            lambda q: q.estimate_duration("m.M1"),
        ):
            with pytest.raises(StoreClosedError):
                ask(closed)
        assert "closed" in repr(closed)
    with pytest.raises(StoreClosedError):
        registry.snapshot()
    with pytest.raises(StoreClosedError):
        registry.revision  # noqa: B018


def test_reprs_are_worth_reading(folder: Path) -> None:
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        assert repr(registry) == f"Registry({str(folder)!r}, Cache(0 records, 0 answers, size=8192))"
        assert repr(snapshot) == f"Snapshot({str(folder)!r}, revision {snapshot.revision})"


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
            held = (cache.by_capability, cache.by_category, cache.by_question)
            assert sum(len(names) for answers in held for names in answers.values()) <= 8 * size


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
        assert len(cache.by_capability) + len(cache.by_question) <= 8 * 64


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
    from registry_store import layout

    monkeypatch.setattr(layout, "CHANGES_KEPT", 256)  # commits by the thousand would be needed otherwise
    with RegistryWriter(tmp_path) as writer, Registry(tmp_path) as registry:
        for i in range(600):
            writer.register_module(ModuleInfo("a.B", estimated_duration=i))
        first, *rest = registry.watch(since=1, timeout=0)
        assert first.everything
        assert [change.revision for change in rest] == list(range(first.revision + 1, registry.revision + 1))
        assert 256 <= len(rest) <= 512


def test_kept_answers_of_different_questions_are_not_confused(registry_folder: Path) -> None:
    questions: list[dict[str, Any]] = [
        {},
        {"capabilities": "reasoning"},
        {"capabilities": ("reasoning",)},
        {"category": "reasoning"},
        {"pool_type": "reasoning"},
        {"capabilities": ("general",)},
        {"pool_type": "general"},
        {"category": "general"},
        {"max_memory": "low"},
        {"max_compute": "low"},
        {"pool_type": "general", "max_memory": "medium"},
        {"pool_type": "general", "max_compute": "medium"},
        {"native": True},
        {"gpu": True},
        {"native": False, "gpu": False},
        {"capabilities": "reasoning", "pool_type": "general", "max_memory": "medium", "gpu": False},
        {"capabilities": "reasoning", "pool_type": "general", "max_memory": "medium"},
    ]
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry, registry.snapshot() as snapshot:
        wanted = [snapshot.find(**question) for question in questions]
        for _ in range(3):
            assert [registry.find(**question) for question in questions] == wanted


def test_asked_for_what_is_no_string_it_answers_as_a_dict_does(queries: Any) -> None:
    for key in (5, None, b"dspy.Predict", ("dspy.Predict",)):
        assert key not in queries
        assert queries.get(key) is None
        assert queries.get(key, 7) == 7
        with pytest.raises(KeyError):
            queries[key]
        for ask in (queries.get_module, queries.get_pool_type, queries.has_native, queries.describe):
            with pytest.raises(TypeError, match="a module's name is a str, not"):
                ask(key)


class Name(str, Enum):
    PREDICT = "dspy.Predict"


def test_a_name_may_be_of_a_class_derived_from_str(queries: Any) -> None:
    assert Name.PREDICT in queries
    assert queries[Name.PREDICT] == queries.get(Name.PREDICT) == queries.get_module(Name.PREDICT)


def test_a_copy_of_a_registry_is_itself_and_a_pickled_one_opens_it_again(folder: Path) -> None:
    weights = CostWeights(low=2.5)
    with Registry(folder, cache_size=3, cost_weights=weights, min_observed_calls=4) as registry:
        assert copy.copy(registry) is copy.deepcopy(registry) is registry
        with pickle.loads(pickle.dumps(registry)) as again:
            assert again is not registry
            assert again["dspy.Predict"] == registry["dspy.Predict"]
            assert again.routing_recommendation("predict") == registry.routing_recommendation("predict")
            assert (again._cache.size, again._min_observed_calls) == (3, 4)
        assert registry["dspy.Predict"].name == "dspy.Predict"
        with registry.snapshot() as snapshot:
            for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied"):
                    duplicate(snapshot)


def test_modules_that_go_amid_an_iteration_are_left_out(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        items, values = iter(registry.items()), iter(registry.values())
        assert next(items)[0] == next(values).name == "dspy.Predict"
        writer.unregister_module("dspy.ChainOfThought")
        assert [name for name, _ in items] == [info.name for info in values] == list(registry)[1:]


@pytest.mark.parametrize(("argument", "value"), [("cache_size", -1), ("min_observed_calls", -1)])
def test_a_negative_option_is_refused(folder: Path, argument: str, value: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{argument} is -1"):
        Registry(folder, **{argument: value})


def test_an_input_size_of_another_type_is_an_error_however_warm_the_cache(queries: Any) -> None:
    for _ in range(3):
        with pytest.raises(InvalidArgumentError, match="input_size"):
            queries.estimate_duration("dspy.Predict", [])


@pytest.mark.parametrize("basis", ["declared", "observed", "auto"])
@pytest.mark.parametrize("size", ["large", -1, float("nan"), []])
def test_an_input_that_has_no_such_size_is_an_error_that_names_the_argument(
    queries: Any, size: Any, basis: str
) -> None:
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match=r"input_size is .*how many characters"):
            queries.routing_recommendation("dspy.Predict", input_size=size, basis=basis)


@pytest.mark.parametrize(("wanted", "native"), [(None, False), (0, False), ("", False), (1, True), ("yes", True)])
def test_whether_to_prefer_native_is_true_or_false(queries: Any, wanted: Any, native: bool) -> None:
    for name in ("dspy.Predict", "dspy.ReAct"):
        recommended = queries.routing_recommendation(name, optimize_latency=wanted)
        assert recommended.prefer_native is (native and name == "dspy.Predict")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("since", -5), ("since", "1"), ("timeout", float("nan")), ("timeout", -1), ("poll", -1), ("poll", float("nan"))],
)
def test_a_watch_refuses_what_is_no_number(folder: Path, argument: str, value: Any) -> None:
    with Registry(folder) as registry:
        for watch in (registry.watch, registry.watch_async):
            with pytest.raises(InvalidArgumentError, match=f"{argument} is "):
                watch(**{argument: value})


def test_an_empty_path_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for opens in (Registry, RegistryWriter, registry_path):
        with pytest.raises(InvalidArgumentError, match="path is empty"):
            opens("")
    monkeypatch.setenv("DSPY_REGISTRY", "")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert registry_path() == Path("/data/dspy-registry")
