"""Which target a routed call reaches: by versions, labels and keys, and when one of them is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    InvalidArgumentError,
    ModuleInfo,
    Registry,
    RegistryWriter,
    Router,
    UnknownLabelError,
)
from tests.support.reporting import NotingReporter

FAST, DEEP = "acme.Fast", "acme.Deep"
MINUTE = 60_000  # milliseconds: no limit ends a call here


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as writer:
        for number in range(3):
            writer.register_module(ModuleInfo(FAST, estimated_duration=MINUTE + number))
        writer.register_module(ModuleInfo(DEEP, estimated_duration=10 * MINUTE))
        writer.set_label(FAST, "live", {1: 1, 2: 1})
        writer.set_label(FAST, "last", 3)
        yield writer


@pytest.fixture
def registry(writer: RegistryWriter) -> Iterator[Registry]:
    with Registry(writer.store.folder) as registry:
        yield registry


@pytest.fixture
def reporter(registry: Registry) -> Iterator[NotingReporter]:
    with NotingReporter(registry.path) as reporter:
        yield reporter


def says(text: str) -> Any:
    return lambda: text


def reached(router: Router, **asked: Any) -> tuple[str, int, str]:
    results = [router.call(**asked), asyncio.run(router.acall(**asked))]
    assert len({(result.name, result.version, result.value) for result in results}) == 1
    return results[0].name, results[0].version, results[0].value


@pytest.mark.parametrize("target", [FAST, "Fast", f"{FAST}@live"])
def test_a_key_and_a_label_choose_the_version_of_a_target(
    registry: Registry, reporter: NotingReporter, target: str
) -> None:
    router = Router(registry, {target: says("fast"), DEEP: says("deep")}, reporter)
    for key in ("a", "b", "c", "user-17"):
        version = registry.resolve(f"{FAST}@live", key=key).version
        assert reached(router, label="live", key=key) == (FAST, version, "fast")
        assert {call[8] for call in reporter.calls[-2:]} == {version}
    with pytest.raises(UnknownLabelError):
        router.call(label="nope") if "@" not in target else router.call(names=DEEP, label="nope")
    with pytest.raises(TypeError):
        router.call(key=3)


def test_a_name_with_a_version_reaches_that_version(registry: Registry, reporter: NotingReporter) -> None:
    router = Router(registry, {FAST: says("any"), f"{FAST}@last": says("last")}, reporter)
    assert reached(router, names=f"{FAST}@1") == (FAST, 1, "any")
    assert reached(router, names="Fast@3") == (FAST, 3, "last")
    assert reached(router, names=(f"{FAST}@2", f"{FAST}@1"), exclude=f"{FAST}@1") == (FAST, 2, "any")
    with pytest.raises(InvalidArgumentError):
        Router(registry, {f"{FAST}@last": says("last")}, reporter).call(names=f"{FAST}@1")


def test_versions_of_a_module_are_targets_of_their_own(registry: Registry, reporter: NotingReporter) -> None:
    def down() -> None:
        raise ConnectionError

    router = Router(registry, {f"{FAST}@1": down, f"{FAST}@last": says("last")}, reporter)
    result = router.call()
    assert [(each.version, each.kind) for each in result.attempts] == [(1, "unavailable"), (3, "ok")]


def test_a_target_whose_label_or_version_is_gone_is_left_out(
    writer: RegistryWriter, registry: Registry, reporter: NotingReporter
) -> None:
    router = Router(registry, {f"{FAST}@last": says("last"), f"{FAST}@77": says("77"), DEEP: says("deep")}, reporter)
    assert reached(router) == (FAST, 3, "last")
    writer.remove_label(FAST, "last")
    assert reached(router) == (DEEP, 1, "deep")
    assert reached(router, key="user-17") == (DEEP, 1, "deep")
    writer.unregister_module(DEEP)
    with pytest.raises(UnknownLabelError):
        router.call()


def test_what_is_wrong_with_a_call_is_told_before_a_target_is_called(
    registry: Registry, reporter: NotingReporter
) -> None:
    router = Router(registry, {FAST: says("fast")}, reporter)
    for wrong in ("x", [], True, -1, float("nan"), 10**400):
        with pytest.raises(InvalidArgumentError, match="deadline_ms"):
            router.call(deadline_ms=wrong)  # type: ignore[arg-type]
    for arguments in (5, "text", ["a"], {1: 2}):
        with pytest.raises(InvalidArgumentError, match="arguments"):
            router.call(arguments=arguments)  # type: ignore[arg-type]
    for targets in (None, [FAST], {3: says("three")}, {"": says("none")}):
        with pytest.raises(InvalidArgumentError):
            Router(registry, targets, reporter)  # type: ignore[arg-type]
    assert reporter.calls == []
    assert router.call(deadline_ms=float("inf")).value == "fast"


def test_a_coroutine_is_no_answer(registry: Registry, reporter: NotingReporter) -> None:
    async def answers() -> str:
        return "answered"

    class Asynchronous:
        async def __call__(self) -> str:
            return "answered"

    assert asyncio.run(Router(registry, {FAST: Asynchronous()}, reporter).acall()).value == "answered"
    for target in (Asynchronous(), lambda: answers()):
        with pytest.raises(InvalidArgumentError):
            Router(registry, {FAST: target}, reporter).call()
    with pytest.raises(InvalidArgumentError):
        asyncio.run(Router(registry, {FAST: lambda: answers()}, reporter).acall())
    assert [call[7] for call in reporter.calls] == [None, "caller", "caller"]
