"""Estimates and recommendations that a registry keeps are those that it would make now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import InvalidArgumentError, ModuleInfo, Registry, RegistryWriter, StoreClosedError, UsageReporter
from dspy_registry.readers.observed import BASES
from tests.support.reporting import SELDOM
from tests.support.usage_helpers import batches, merge

NAME = "dspy.Predict"


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as writer:
        yield writer


@pytest.fixture
def registry(writer: RegistryWriter, registry_folder: Path) -> Iterator[Registry]:
    with Registry(registry_folder) as registry:
        yield registry


def advice(registry: Any, basis: str) -> tuple[Any, ...]:
    recommended = registry.routing_recommendation("predict", input_size=5000, basis=basis)
    return registry.estimate_duration("predict", "large", basis), recommended


@pytest.mark.parametrize("basis", BASES)
def test_advice_follows_records_and_usage(writer: RegistryWriter, registry: Registry, basis: str) -> None:
    def check() -> None:
        for _ in range(2):
            with registry.snapshot() as snapshot:  # keeps nothing
                assert advice(registry, basis) == advice(snapshot, basis)

    check()
    assert registry.routing_recommendation(NAME, basis=basis) is registry.routing_recommendation(NAME, basis=basis)
    writer.register_module(ModuleInfo(NAME, estimated_duration=70, metadata={"cost_usd_per_call": 0.5}))
    check()
    now = int(time.time() * 1000)
    merge(writer, batches([(NAME, 900.0, True, 5000, 0, 0, 0.25)] * 25, now=now, version=2), now=now)
    check()
    assert registry.routing_recommendation(NAME).observed_cost_usd == 0.25
    assert registry.estimate_duration(NAME, "large", "auto") == pytest.approx(900, rel=0.01)


def test_a_timeout_of_this_process_counts_at_once(registry: Registry, registry_folder: Path) -> None:
    before = registry.routing_recommendation(NAME, basis="auto").timeout
    with UsageReporter(registry_folder, interval=SELDOM) as reporter:
        assert registry.routing_recommendation(NAME, basis="auto").timeout == before
        reporter.record(NAME, 1200.0, error="timeout", limit_ms=1200.0)
        assert registry.routing_recommendation(NAME, basis="auto").timeout == 2400
        assert registry.routing_recommendation(NAME).timeout == before


def test_what_is_wrong_is_refused_however_often_it_is_asked(registry: Registry) -> None:
    wrong: list[dict[str, Any]] = [{"input_size": -1}, {"input_size": "large"}, {"input_size": [1]}, {"basis": "felt"}]
    for arguments in wrong * 2:
        with pytest.raises(InvalidArgumentError):
            registry.routing_recommendation(NAME, **arguments)
    for _ in range(2):
        with pytest.raises(InvalidArgumentError):
            registry.estimate_duration(NAME, "huge")


def test_a_registry_without_a_cache_keeps_no_advice(writer: RegistryWriter, registry_folder: Path) -> None:
    with Registry(registry_folder, cache_size=0) as registry:
        first = registry.routing_recommendation(NAME)
        assert registry.routing_recommendation(NAME) == first
        assert registry.routing_recommendation(NAME) is not first
        assert registry.route("reasoning") is not registry.route("reasoning")


def test_a_closed_registry_gives_no_advice(registry: Registry) -> None:
    advice(registry, "auto")
    registry.close()
    with pytest.raises(StoreClosedError):
        registry.estimate_duration("predict", "large", "auto")
    with pytest.raises(StoreClosedError):
        registry.routing_recommendation("predict", input_size=5000)


def test_a_candidate_keeps_its_recommendation_until_this_process_saw_something_new(
    registry: Registry, registry_folder: Path
) -> None:
    candidate = registry.route(names=NAME).alternatives[0]
    with UsageReporter(registry_folder, interval=SELDOM) as reporter:
        before = candidate.recommendation
        assert candidate.recommendation is before
        reporter.record(NAME, before.timeout, error="timeout", limit_ms=before.timeout, version=1)
        assert candidate.recommendation.timeout == 2 * before.timeout
        assert candidate.recommendation is candidate.recommendation
        reporter.record(NAME, 1.0, version=1)
        assert candidate.recommendation == before
