"""What a routed call waits for takes from its one deadline."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, Policy, Registry, RegistryWriter, Result, Router
from dspy_registry.registry_store.classify import kind_of
from dspy_registry.router.calling import Calling, Given
from dspy_registry.router.course import Refused, Try
from dspy_registry.router.wanted import Wanted
from tests.support.reporting import NotingReporter

NAME = "acme.Qa"
WAITED_MS = 200.0


@pytest.fixture
def registry(registry_folder: Path) -> Iterator[Registry]:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(ModuleInfo(NAME, estimated_duration=60_000))
        writer.set_policy(NAME, Policy(max_concurrency=1))
        yield registry


Accepts = Callable[[Any], bool]


def call(router: Router, deadline_ms: float, accept: Accepts) -> Result:
    return router.call(deadline_ms=deadline_ms, accept=accept)


def acall(router: Router, deadline_ms: float, accept: Accepts) -> Result:
    return asyncio.run(router.acall(deadline_ms=deadline_ms, accept=accept))


@pytest.mark.parametrize("ask", [call, acall])
def test_the_time_that_a_call_waited_for_its_limit_takes_from_the_deadline(
    registry: Registry, registry_folder: Path, ask: Callable[[Router, float, Accepts], Result]
) -> None:
    """Its limit in time is the 72 s that the registry advises, or less. The holder waits until the deadline runs."""
    with NotingReporter(registry_folder) as reporter:
        router = Router(registry, {NAME: lambda: "answered"}, reporter)
        held = registry.limit(NAME)
        held.__enter__()
        giving_back = threading.Timer(WAITED_MS / 1000, held.end)

        def is_asked(candidate: Any) -> bool:
            if giving_back.ident is None:
                giving_back.start()
            return True

        (attempt,) = ask(router, 70_000.0, is_asked).attempts
        giving_back.join()
        assert attempt.limit_ms <= 70_000.0 - WAITED_MS
        assert reporter.calls[0][9] == attempt.limit_ms


def test_an_attempt_that_waited_until_its_deadline_does_not_begin(registry: Registry, registry_folder: Path) -> None:
    began: list[str] = []
    targets = {NAME: lambda: began.append("too late")}
    given = Given(Wanted(registry, targets, {}), {}, None)
    with NotingReporter(registry_folder) as reporter:
        calling = Calling(registry, reporter, kind_of)
        step = Try(registry.route(names=(NAME,)).alternatives[0], 60.0, end=time.monotonic() - 1)
        assert calling.attempt(step, given) == Refused(None)
        assert asyncio.run(calling.attempt_async(step, given)) == Refused(None)
        assert (began, reporter.calls, registry.limited_calls()) == ([], [], [])


def test_an_attempt_has_what_is_left_when_it_begins() -> None:
    candidate: Any = None
    assert Try(candidate, 2.0).begun(1e9) == Try(candidate, 2.0)
    step = Try(candidate, 2.0, end=10.0)
    assert [step.begun(now) and step.begun(now).seconds for now in (0.0, 8.0, 9.5)] == [2.0, 2.0, 0.5]
    assert step.begun(10.0) is None
