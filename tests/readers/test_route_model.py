"""`route` against a plain model, over random records, usage, health and arguments."""

from __future__ import annotations

import time
from math import isclose
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_registry import ModuleInfo, NoCandidateError, Registry, RegistryWriter, Requirements
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.circuit import CircuitRow
from dspy_registry.registry_store.health_file import ensure_health_file
from dspy_registry.registry_store.outcome_kinds import KINDS
from tests.support import route_model
from tests.support.route_model import Module
from tests.support.usage_helpers import batches, merge

NAMES = tuple(f"acme.M{number}" for number in range(5))
CHARACTERS = {"small": 50, "normal": 500, "large": 5_000, "very_large": 50_000}
INPUTS = st.sampled_from(tuple(CHARACTERS))
CALL = st.tuples(
    st.sampled_from((5.0, 40.0, 900.0)),
    st.sampled_from(("ok", "ok", "ok", *KINDS)),
    INPUTS,
    st.none() | st.sampled_from((0.001, 0.02)),
)


@st.composite
def modules(draw: st.DrawFn) -> list[Module]:
    return [
        Module(
            name,
            tuple(draw(st.sets(st.sampled_from(("think", "look")), max_size=2))),
            draw(st.sampled_from((0, 1, 100, 250))),
            draw(st.sampled_from(tuple(route_model.WEIGHTS))),
            draw(st.booleans()),
            draw(st.none() | st.sampled_from((0.0, 0.005))),
            draw(st.lists(CALL, max_size=3)) * draw(st.sampled_from((1, 9))),
        )
        for name in NAMES[: draw(st.integers(0, len(NAMES)))]
    ]


ASKED = st.fixed_dictionaries(
    {
        "capability": st.none() | st.sampled_from(("think", "look")),
        "names": st.none() | st.permutations(NAMES).map(lambda found: found[:3]),
        "size": INPUTS,
        "basis": st.sampled_from(("declared", "observed", "auto")),
        "prefer": st.sampled_from(("balanced", "latency", "cost", "reliability")),
        "deadline_ms": st.none() | st.sampled_from((60, 300)),
        "max_cost_usd": st.none() | st.sampled_from((0.0, 0.01)),
        "exclude": st.sets(st.sampled_from(NAMES), max_size=2),
        "accepts": st.none() | st.just(lambda name: name != "acme.M1"),
    }
)
HEALTH = st.dictionaries(st.sampled_from(NAMES), st.sampled_from((-5.0, 600.0, 700.0)), max_size=5)
"""Seconds from now until a circuit's deadline; passed: half-open."""


def info(module: Module) -> ModuleInfo:
    return ModuleInfo(
        module.name,
        category="acme",
        capabilities=module.capabilities,
        estimated_duration=module.duration,
        requirements=Requirements(compute=module.compute, gpu=module.gpu),
        metadata={} if module.declared_usd is None else {"cost_usd_per_call": module.declared_usd},
    )


def filled(path: Path, found: list[Module]) -> None:
    with RegistryWriter(path) as writer:
        writer.register_modules([info(module) for module in found])
        now = int(time.time() * 1000)
        sent = [
            batch
            for module in found
            for milliseconds, kind, size, dollars in module.calls
            for batch in batches(
                [(module.name, milliseconds, kind == "ok", CHARACTERS[size], 0, 0, dollars)],
                now=now,
                error=kind,
                version=1,
            )
        ]
        merge(writer, sent, now=now)


def answered(reader: Any, asked: dict[str, Any]) -> Any:
    accepts = asked["accepts"]
    return reader.route(
        () if asked["capability"] is None else (asked["capability"],),
        names=asked["names"],
        input_size=CHARACTERS[asked["size"]],
        prefer=asked["prefer"],
        deadline_ms=asked["deadline_ms"],
        max_cost_usd=asked["max_cost_usd"],
        exclude=tuple(sorted(asked["exclude"])),
        accept=None if accepts is None else lambda candidate: accepts(candidate.name),
        basis=asked["basis"],
        category="acme",
    )


@settings(max_examples=50)
@given(found=modules(), asked=ASKED, until=HEALTH)
def test_a_route_is_what_the_model_says(found: list[Module], asked: dict[str, Any], until: dict[str, float]) -> None:
    asked["names"] = asked["names"] and [name for name in asked["names"] if name in {each.name for each in found}]
    with TemporaryDirectory() as folder:
        path = Path(folder)
        filled(path, found)
        if until:
            now = boot_seconds()
            rows = [CircuitRow(name, 1, now - 10, now + seconds, 1, 1, 5, "error") for name, seconds in until.items()]
            ensure_health_file(path).publish(rows)
        with Registry(path) as registry:
            for each in found:
                ended = [call for call in each.calls if call[1] != "cancelled"]
                assert registry.usage(each.name, 1).calls == len(ended)

            def observed(name: str, size: str) -> float | None:
                standing = registry.usage(name, 1).standing.get(size)
                return standing.p50 if standing is not None and standing.completed >= 20 else None

            expected = route_model.route(
                found,
                observed,
                {name: seconds for name, seconds in until.items() if seconds > 0},
                {name for name, seconds in until.items() if seconds < 0},
                **asked,
            )
            with registry.snapshot() as snapshot:
                for reader in (registry, registry, snapshot):
                    check(reader, asked, expected)


def check(reader: Any, asked: dict[str, Any], expected: route_model.Answer) -> None:
    if not expected.order:
        with pytest.raises(NoCandidateError) as caught:
            answered(reader, asked)
        assert {name: reason for name, _, reason, _ in caught.value.excluded} == expected.reasons
        return
    route = answered(reader, asked)
    assert [each.name for each in route.alternatives] == expected.order
    assert {each.name: each.reason for each in route.excluded} == expected.reasons
    assert (route.name, route.version, route.degraded) == (expected.order[0], 1, expected.degraded)
    for each in route.alternatives:
        assert each.cost_unit == expected.unit
        milliseconds, cost, rate = expected.numbers[each.name]
        assert each.expected_ms == milliseconds
        assert isclose(each.cost, cost, abs_tol=1e-12)
        assert isclose(each.failure_rate, rate)
    assert route.explain()
