"""Routes among versions: by name, by one label for all, and by a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import (
    LabelUpdate,
    ModuleInfo,
    NoCandidateError,
    Policy,
    Registry,
    RegistryWriter,
    UnknownLabelError,
)

FAST, DEEP = "acme.Fast", "acme.Deep"


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as writer:
        for duration in (100, 200, 900):
            writer.register_module(ModuleInfo(FAST, estimated_duration=duration, capabilities=("answering",)))
            writer.register_module(ModuleInfo(DEEP, estimated_duration=duration + 50, capabilities=("answering",)))
        writer.register_module(ModuleInfo("acme.Plain", capabilities=("answering",)))
        writer.set_labels([LabelUpdate(FAST, "live", {1: 50, 2: 50}), LabelUpdate(DEEP, "live", 1)])
        yield writer


@pytest.fixture
def registry(writer: RegistryWriter) -> Iterator[Registry]:
    with Registry(writer.store.folder) as registry:
        yield registry


def test_names_say_versions(registry: Registry) -> None:
    route = registry.route(names=(f"{FAST}@3", f"{DEEP}@live"))
    assert [(each.name, each.version) for each in route.alternatives] == [(DEEP, 1), (FAST, 3)]
    assert route.alternatives[0].expected_ms == 150
    with registry.snapshot() as snapshot:
        again = snapshot.route(names=(f"{FAST}@3", f"{DEEP}@live"))
        assert [(each.name, each.version) for each in again.alternatives] == [(DEEP, 1), (FAST, 3)]
    with pytest.raises(UnknownLabelError):
        registry.route(names=(f"{FAST}@nope", DEEP))


def test_one_label_for_all_and_a_key(registry: Registry) -> None:
    for key in ("a", "b", "user-17", "user-18", "c"):
        wanted = {(FAST, registry.resolve(f"{FAST}@live", key=key).version), (DEEP, 1)}
        for route in (
            registry.route(capabilities="answering", label="live", key=key),
            registry.route(names=(FAST, f"{DEEP}@live"), label="live", key=key),
        ):
            assert {(each.name, each.version) for each in route.alternatives} == wanted
        with registry.snapshot() as snapshot:
            route = snapshot.route(names=(FAST, DEEP), label="live", key=key)
            assert {(each.name, each.version) for each in route.alternatives} == wanted
    assert registry.route(names=DEEP, key="a").version == 3
    with pytest.raises(UnknownLabelError):
        registry.route(names=("acme.Plain", FAST), label="live")
    with pytest.raises(NoCandidateError):
        registry.route(capabilities="answering", label="nope")
    with pytest.raises(TypeError):
        registry.route(names=FAST, label=3)  # type: ignore[arg-type]


def test_routes_are_kept_by_versions_and_follow_labels(writer: RegistryWriter, registry: Registry) -> None:
    kept = {registry.route(names=FAST, label="live", key=f"user-{number}").version for number in range(50)}
    assert kept == {1, 2}
    writer.set_label(FAST, "live", 3)
    assert {registry.route(names=FAST, label="live", key=f"user-{number}").version for number in range(9)} == {3}
    assert registry.route(names=f"{FAST}@live").version == 3


def test_limits_and_policies_take_versions(writer: RegistryWriter, registry: Registry) -> None:
    writer.set_policy(FAST, Policy(max_concurrency=2))
    assert registry.policy(f"{FAST}@live").max_concurrency == registry.policy(FAST).max_concurrency == 2
    with registry.limit(f"{FAST}@2", patience=0), registry.limit(FAST, patience=0):
        assert {limit.key for limit in registry.limits_of(f"{FAST}@live")} == {f"module:{FAST}"}


def test_two_versions_of_a_module_are_two_candidates(registry: Registry) -> None:
    names = (f"{FAST}@3", FAST, f"{FAST}@1", f"{FAST}@live", f"{DEEP}@2")
    route = registry.route(names=names)
    assert [(each.name, each.version) for each in route.alternatives] == [
        (FAST, 1),
        (FAST, 2),
        (DEEP, 2),
        (FAST, 3),
    ]
    assert [each.expected_ms for each in route.alternatives] == [100, 200, 250, 900]
    assert f"1. {FAST}, version 1" in route.explain()
    with registry.snapshot() as snapshot:
        assert [each.version for each in snapshot.route(names=names).alternatives] == [1, 2, 2, 3]


def test_an_excluded_version_leaves_the_others(registry: Registry) -> None:
    names = (f"{FAST}@3", f"{FAST}@2")
    for excluded in (f"{FAST}@2", "Fast@2", f"{FAST}@live"):
        route = registry.route(names=names, exclude=excluded)
        assert (route.version, [(each.version, each.reason) for each in route.excluded]) == (3, [(2, "exclude")])
    assert registry.route(names=names, exclude=(f"{FAST}@9", f"{FAST}@nope", "acme.Nope")).excluded == ()
    with pytest.raises(NoCandidateError):
        registry.route(names=names, exclude="Fast")
