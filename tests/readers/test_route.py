"""`route` of registries and snapshots: what it decides, and what it keeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    Candidate,
    InvalidArgumentError,
    ModuleInfo,
    NoCandidateError,
    Registry,
    RegistryWriter,
    Requirements,
    Route,
    StoreClosedError,
    UnknownModuleError,
)
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.circuit import CircuitRow
from dspy_registry.registry_store.health_file import ensure_health_file
from tests.support.usage_helpers import batches, merge

REASONING = ("dspy.ChainOfThought", "dspy.ReAct", "dspy.ProgramOfThought")


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as writer:
        yield writer


@pytest.fixture
def registry(writer: RegistryWriter, registry_folder: Path) -> Iterator[Registry]:
    with Registry(registry_folder) as registry:
        yield registry


def report(writer: RegistryWriter, *calls: tuple[Any, ...]) -> None:
    """Merge these calls, given as the arguments of `record`; they end now."""
    now = int(time.time() * 1000)
    merge(writer, batches(calls, now=now), now=now)


def names(route: Route) -> list[str]:
    return [each.name for each in route.alternatives]


def test_the_quickest_and_cheapest_module_with_the_capability_is_chosen(registry: Registry) -> None:
    route = registry.route(capabilities=("reasoning",))
    assert (route.name, route.version, route.degraded, route.excluded) == ("dspy.ChainOfThought", 1, False, ())
    assert names(route) == list(REASONING)
    best = route.alternatives[0]
    assert (best.expected_ms, best.cost, best.cost_unit, best.failure_rate, best.is_probe) == (
        3000,
        6.0,
        "compute_seconds",
        0.02,
        False,
    )
    assert best.score == pytest.approx((3000 * 6.0) ** 0.5 / 0.98)
    assert route.recommendation == best.recommendation == registry.routing_recommendation(route.name, basis="auto")


def test_names_keep_their_order_in_ties_and_are_narrowed_by_conditions(registry: Registry) -> None:
    route = registry.route("reasoning", names=("ReAct", "predict", "ChainOfThought"), prefer=lambda found: found)
    assert names(route) == ["dspy.ReAct", "dspy.ChainOfThought"]
    assert [each.asked for each in route.alternatives] == ["ReAct", "ChainOfThought"]
    assert names(registry.route(names=("predict", "dspy.Predict"))) == ["dspy.Predict"]


def test_what_is_left_out_is_told_with_the_first_reason(registry: Registry) -> None:
    route = registry.route(
        names=REASONING, exclude=("ReAct",), deadline_ms=5000, accept=lambda candidate: candidate.version == 1
    )
    assert names(route) == ["dspy.ChainOfThought"]
    assert [each[:3] for each in route.excluded] == [
        ("dspy.ReAct", 1, "exclude"),
        ("dspy.ProgramOfThought", 1, "deadline"),
    ]
    with pytest.raises(NoCandidateError) as caught:
        registry.route("reasoning", max_cost_usd=0.01)
    assert [(name, reason) for name, _, reason, _ in caught.value.excluded] == [
        (name, "cost_unknown") for name in REASONING
    ]
    with pytest.raises(NoCandidateError) as caught:
        registry.route("flying")
    assert caught.value.excluded == ()


def test_a_function_may_filter_and_order(registry: Registry) -> None:
    seen: list[Candidate] = []

    def slowest_first(found: tuple[Candidate, ...]) -> list[Candidate]:
        seen.extend(found)
        return sorted(found, key=lambda each: -each.expected_ms)[:2]

    route = registry.route("reasoning", prefer=slowest_first)
    assert names(route) == ["dspy.ProgramOfThought", "dspy.ReAct"]
    assert [(each.name, each.reason) for each in route.excluded] == [("dspy.ChainOfThought", "preference")]
    assert seen[0].recommendation.timeout == 3600
    with pytest.raises(InvalidArgumentError):
        registry.route("reasoning", prefer=lambda found: ["dspy.ReAct"])


def test_all_that_is_wrong_is_told_at_once(registry: Registry) -> None:
    wrong: dict[str, Any] = {
        "input_size": -1,
        "prefer": "quickest",
        "deadline_ms": "soon",
        "max_cost_usd": float("nan"),
        "accept": 5,
        "basis": "felt",
    }
    with pytest.raises(InvalidArgumentError) as caught:
        registry.route(**wrong)
    assert all(argument in caught.value.message for argument in wrong)
    with pytest.raises(TypeError):
        registry.route(names=(5,))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        registry.route(category=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        registry.route(max_memory="enormous")
    with pytest.raises(UnknownModuleError, match=r"'acme\.Nobody', 'acme\.None'"):
        registry.route(names=("acme.Nobody", "dspy.Predict", "acme.None"))
    with pytest.raises(UnknownModuleError):
        registry.route(names=("acme.Nothing",))


def test_a_route_is_kept_by_its_arguments_until_something_changes(writer: RegistryWriter, registry: Registry) -> None:
    def ask(**changes: Any) -> Route:
        return registry.route(**{"capabilities": ("reasoning",), "input_size": 300, **changes})

    first = ask()
    assert ask() is first
    assert ask(input_size=999) is first is registry.route(("reasoning",))  # the size class decides
    others = [
        ask(**change)
        for change in (
            {"input_size": 1001},
            {"input_size": 50},
            {"prefer": "latency"},
            {"basis": "declared"},
            {"deadline_ms": 60_000},
            {"exclude": ("ReAct",)},
            {"max_memory": "high"},
            {"names": REASONING},
        )
    ]
    assert len({id(route) for route in (first, *others)}) == len(others) + 1
    assert ask(capabilities=["reasoning"]) is not first
    writer.register_module(ModuleInfo("acme.Reasoner", capabilities=("reasoning",), estimated_duration=1))
    second = ask()
    assert (second.name, second.revision) == ("acme.Reasoner", first.revision + 1)
    report(writer, *[("acme.Reasoner", 0.0, False)] * 5)
    third = ask()
    assert third is not second
    assert third.usage_word > second.usage_word
    assert third.alternatives[0].failure_rate > second.alternatives[0].failure_rate


def test_a_route_of_a_closed_registry_is_refused(registry: Registry) -> None:
    registry.route("reasoning")
    registry.close()
    with pytest.raises(StoreClosedError):
        registry.route("reasoning")


def test_a_replaced_module_is_another_version_at_once(writer: RegistryWriter, registry: Registry) -> None:
    assert registry.route(names="predict").version == 1
    writer.register_module(ModuleInfo("dspy.Predict", estimated_duration=1))
    assert registry.route(names="predict").version == 2


def test_a_snapshot_decides_by_its_own_records_and_usage(writer: RegistryWriter, registry: Registry) -> None:
    with registry.snapshot() as snapshot:
        before = snapshot.route("reasoning")
        writer.register_module(ModuleInfo("acme.Reasoner", capabilities=("reasoning",), estimated_duration=1))
        assert registry.route("reasoning").name == "acme.Reasoner"
        again = snapshot.route("reasoning")
        assert names(again) == names(before) == list(REASONING)
        assert again.revision == snapshot.revision
    assert before.recommendation.timeout == 3600  # also after the snapshot was closed
    with pytest.raises(StoreClosedError):
        snapshot.route("reasoning")


def test_dollars_count_where_every_candidate_has_them(writer: RegistryWriter, registry: Registry) -> None:
    for name, cost in (("acme.A", 0.02), ("acme.B", 0.01)):
        writer.register_module(ModuleInfo(name, estimated_duration=100, metadata={"cost_usd_per_call": cost}))
    route = registry.route(names=("acme.A", "acme.B"), prefer="cost")
    assert [(each.name, each.cost, each.cost_unit) for each in route.alternatives] == [
        ("acme.B", 0.01, "usd"),
        ("acme.A", 0.02, "usd"),
    ]
    report(writer, *[("acme.B", 0.0, True, None, 0, 0, 0.05)] * 3)
    route = registry.route(names=("acme.A", "acme.B"), prefer="cost", max_cost_usd=0.03)
    assert names(route) == ["acme.A"]
    assert [each.reason for each in route.excluded] == ["cost"]
    assert registry.route(names=("acme.A", "predict"), prefer="cost").alternatives[0].cost_unit == "compute_seconds"


def test_i31_a_kept_decision_ends_when_health_changes(registry: Registry, registry_folder: Path) -> None:
    first = registry.route("reasoning")
    assert first.health_word == 0  # there is no daemon, and no file
    file = ensure_health_file(registry_folder)
    assert registry.health() == []  # looks for the file at once
    now = boot_seconds()
    word = file.publish([CircuitRow("dspy.ChainOfThought", 1, now, now + 600, 1, 1, 5, "error")])
    second = registry.route("reasoning")
    assert (second.name, second.health_word) == ("dspy.ReAct", word)
    assert [(each.name, each.reason) for each in second.excluded] == [("dspy.ChainOfThought", "health")]
    assert registry.route("reasoning") is second
    file.publish([CircuitRow("dspy.ChainOfThought", 1, now, now - 1, 1, 1, 5, "error")])
    third = registry.route("reasoning")
    assert third.alternatives[-1].name == "dspy.ChainOfThought"
    assert third.alternatives[-1].is_probe
    with registry.snapshot() as snapshot:
        assert [each.is_probe for each in snapshot.route("reasoning").alternatives] == [False, False, True]
    rows = [CircuitRow(name, 1, now, now + 600 - number, 1, 1, 5, "error") for number, name in enumerate(REASONING)]
    file.publish(rows)
    last = registry.route("reasoning")
    assert (last.name, last.degraded, names(last)) == (REASONING[-1], True, [REASONING[-1]])


def test_an_explanation_says_every_number_and_where_it_comes_from(writer: RegistryWriter, registry: Registry) -> None:
    writer.register_module(
        ModuleInfo("acme.A", estimated_duration=100, requirements=Requirements(compute="high"), capabilities=("x",))
    )
    route = registry.route(names=("acme.A", "predict"), exclude="predict")
    told = route.explain()
    for number in (f"revision {route.revision}", "d = 100 ms, declared", "c = 0.4", "0.02", "dspy.Predict", "exclude"):
        assert number in told


def test_i31_a_decision_rests_on_one_revision_and_says_which(writer: RegistryWriter, registry: Registry) -> None:
    """Two modules always change together; a decision never sees one of them old and the other new."""
    stop = threading.Event()

    def flip() -> None:
        odd = False
        while not stop.is_set():
            odd = not odd
            pair = [
                ModuleInfo(name, estimated_duration=100 + odd, capabilities=("p",)) for name in ("acme.A", "acme.B")
            ]
            writer.register_modules(pair)

    writer.register_modules(
        [ModuleInfo(name, estimated_duration=100, capabilities=("p",)) for name in ("acme.A", "acme.B")]
    )
    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for turn in range(300):
            asked = {"deadline_ms": 1000 + turn} if turn % 2 else {}
            route = registry.route("p", **asked)  # type: ignore[arg-type]
            assert len({(each.expected_ms, each.version) for each in route.alternatives}) == 1
            with registry.snapshot() as snapshot:
                seen = snapshot.route("p")
                assert seen.revision == snapshot.revision
                assert {each.expected_ms for each in seen.alternatives} == {snapshot["acme.A"].estimated_duration}
    finally:
        stop.set()
        thread.join()


def test_a_capability_that_no_module_has_comes_with_the_nearest(registry: Registry) -> None:
    with registry.snapshot() as snapshot:
        for asked in (registry, snapshot):
            for wanted in ({"capabilities": "resoning"}, {"any_capabilities": ("resoning",), "gpu": False}):
                with pytest.raises(NoCandidateError, match=r"'resoning'\. Did you mean reasoning"):
                    asked.route(**wanted)
            with pytest.raises(NoCandidateError) as caught:
                asked.route(capabilities="reasoning", category="nowhere")
            assert "Did you mean" not in str(caught.value)
