"""A registry is a mapping: what it takes for a key, how it is copied and closed, which arguments it refuses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import CostWeights, InvalidArgumentError, Registry, RegistryWriter, StoreClosedError
from dspy_registry.registry_store.codec import open_record
from dspy_registry.registry_store.paths import registry_path
from tests.support import queried
from tests.support.queried import MODULES

folder = queried.folder
queries = queried.queries


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


def test_asked_for_what_is_no_string_it_answers_as_a_dict_does(queries: Any) -> None:
    for key in (5, None, b"dspy.Predict", ("dspy.Predict",)):
        assert key not in queries
        assert queries.get(key) is None
        assert queries.get(key, 7) == 7
        with pytest.raises(KeyError):
            queries[key]
        for ask in (queries.get_module, queries.get_pool_type, queries.has_native, queries.describe):
            with pytest.raises(TypeError):
                ask(key)


class Name(str, Enum):
    PREDICT = "dspy.Predict"


def test_a_name_may_be_of_a_class_derived_from_str(queries: Any) -> None:
    assert Name.PREDICT in queries
    assert queries[Name.PREDICT] == queries.get(Name.PREDICT) == queries.get_module(Name.PREDICT)


def test_modules_that_go_amid_an_iteration_are_left_out(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        items, values = iter(registry.items()), iter(registry.values())
        assert next(items)[0] == next(values).name == "dspy.Predict"
        writer.unregister_module("dspy.ChainOfThought")
        assert [name for name, _ in items] == [info.name for info in values] == list(registry)[1:]


def test_reprs_are_worth_reading(folder: Path) -> None:
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        assert repr(registry) == f"Registry({str(folder)!r}, Cache(0 records, 0 results, size=8192))"
        assert repr(snapshot) == f"Snapshot({str(folder)!r}, revision {snapshot.revision})"


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
                with pytest.raises(TypeError):
                    duplicate(snapshot)


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


@pytest.mark.parametrize(("argument", "value"), [("cache_size", -1), ("min_observed_calls", -1)])
def test_a_negative_option_is_refused(folder: Path, argument: str, value: int) -> None:
    with pytest.raises(InvalidArgumentError, match=argument):
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
        with pytest.raises(InvalidArgumentError, match="input_size"):
            queries.routing_recommendation("dspy.Predict", input_size=size, basis=basis)


@pytest.mark.parametrize("wanted", [False, True])
def test_whether_to_prefer_native_is_true_or_false(queries: Any, wanted: bool) -> None:
    for name in ("dspy.Predict", "dspy.ReAct"):
        recommended = queries.routing_recommendation(name, optimize_latency=wanted)
        assert recommended.prefer_native is (wanted and name == "dspy.Predict")


@pytest.mark.parametrize("wanted", [None, 0, "", 1, "yes"])
def test_whether_to_prefer_native_is_asked_for_as_true_or_false(queries: Any, wanted: Any) -> None:
    with pytest.raises(TypeError):
        queries.routing_recommendation("dspy.Predict", optimize_latency=wanted)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("since", -5), ("since", "1"), ("timeout", float("nan")), ("timeout", -1), ("poll", -1), ("poll", float("nan"))],
)
def test_a_watch_refuses_what_is_no_number(folder: Path, argument: str, value: Any) -> None:
    with Registry(folder) as registry:
        for watch in (registry.watch, registry.watch_async):
            with pytest.raises(InvalidArgumentError, match=argument):
                watch(**{argument: value})


def test_an_empty_path_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for opens in (Registry, RegistryWriter, registry_path):
        with pytest.raises(InvalidArgumentError):
            opens("")
    monkeypatch.setenv("DSPY_REGISTRY", "")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert registry_path() == Path("/data/dspy-registry")
