"""Limits that a process obeys, through real registry, reporter and daemon: only the calls are simulated."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Registry, UsageReporter, WriterClient
from dspy_registry.registry_store.advice import default_ceiling
from tests.support.advisers import DECLARED_DURATION, DECLARED_TIMEOUT, Asking
from tests.support.command import daemon
from tests.support.providers import (
    Call,
    Durations,
    at_most,
    bimodal,
    call_in_turn,
    drifting,
    hanging,
    heavy_tailed,
    out,
    rows_of_timeouts,
    stepping,
    timeouts,
    usual,
)
from tests.support.reporting import SELDOM

NAME = "acme.Qa"
CEILING = default_ceiling(DECLARED_TIMEOUT)
SLOWEST = CEILING / 1.5
PROVIDERS: dict[str, Durations] = {
    "10 x slower": stepping(10, 300, 600),
    "100 x slower": stepping(100, 300, 600),
    "100 x quicker": stepping(0.01, 300, 600),
    "bimodal": bimodal(0.3, 100),
    "heavy tail": heavy_tailed(0.7),
    "drifting": drifting(100, 500),
}


@pytest.fixture
def client(seeded_registry: Path) -> Iterator[WriterClient]:
    with daemon(seeded_registry), WriterClient(seeded_registry) as client:
        client.register_module(ModuleInfo(NAME, estimated_duration=round(DECLARED_DURATION)))
        yield client


@pytest.fixture
def registry(seeded_registry: Path, client: WriterClient) -> Iterator[Registry]:
    with Registry(seeded_registry) as registry:
        yield registry


def reporting(path: Path, interval: float) -> UsageReporter:
    return UsageReporter(path, interval=interval)


def assert_few_in_a_row(calls: list[Call]) -> None:
    for row in rows_of_timeouts(calls):
        # Limits are rounded up to whole milliseconds, so a row may begin above T and ends no later for it.
        assert len(row) <= math.ceil(math.log2(CEILING / row[0].limit)), [call.limit for call in row]


@pytest.mark.parametrize("basis", ["observed", "auto"])
def test_i25_timeouts_in_a_row_are_few_through_reporter_and_daemon(
    registry: Registry, client: WriterClient, basis: str
) -> None:
    """Whenever the daemon merges what it was told: each process acts on its own calls at once."""
    with reporting(registry.path, 0.02) as reporter:
        for number, provider in enumerate(PROVIDERS.values()):
            name = f"acme.M{number}"
            client.register_module(ModuleInfo(name, estimated_duration=round(DECLARED_DURATION)))
            assert_few_in_a_row(call_in_turn(at_most(SLOWEST, provider), Asking(registry, reporter, name, basis), 900))
        assert reporter.flush(30)


def test_i25_timeouts_in_a_row_are_few_for_each_of_several_reporters(registry: Registry) -> None:
    """Threads with a reporter each report beside one another; each calls in turn."""
    made: list[list[Call]] = []

    def work(reporter: UsageReporter, provider: Durations) -> None:
        made.append(call_in_turn(at_most(SLOWEST, provider), Asking(registry, reporter, NAME), 400))

    with ExitStack() as stack:
        threads = [
            threading.Thread(target=work, args=(stack.enter_context(reporting(registry.path, 0.02)), provider))
            for provider in (usual, stepping(100, 100), bimodal(0.3, 100), heavy_tailed(1.5))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == len(threads)


def test_a_provider_that_slows_a_little_fails_no_more_than_a_call(registry: Registry) -> None:
    with reporting(registry.path, SELDOM) as reporter:
        asking = Asking(registry, reporter, NAME)
        call_in_turn(usual, asking, 2000)
        assert reporter.flush(30)
        assert timeouts(call_in_turn(stepping(1.3, 0), asking, 40, seed=2)) <= 1


def test_a_record_that_declares_more_is_believed_at_once(registry: Registry, client: WriterClient) -> None:
    with reporting(registry.path, SELDOM) as reporter:
        asking = Asking(registry, reporter, NAME, "auto")
        call_in_turn(usual, asking, 2000)
        assert reporter.flush(30)
        assert asking.limit_ms() == DECLARED_TIMEOUT
        client.register_module(ModuleInfo(NAME, estimated_duration=10_000))
        assert asking.limit_ms() == 12_000
        slow = call_in_turn(stepping(70, 0), asking, 200, seed=2)
        assert timeouts(slow[:5]) == 0
        assert reporter.flush(30)
        assert registry.usage(NAME, 1).calls == 2000
        assert registry.usage(NAME, 2).calls == 200
        assert registry.estimate_duration(NAME, basis="auto") == pytest.approx(7000, rel=0.1)


def test_a_quick_model_in_place_of_a_slow_one_is_seen_after_twenty_calls(
    registry: Registry, client: WriterClient
) -> None:
    with reporting(registry.path, SELDOM) as reporter:
        client.register_module(ModuleInfo(NAME, estimated_duration=10_000))
        asking = Asking(registry, reporter, NAME, "auto")
        call_in_turn(stepping(100, 0), asking, 500)
        assert reporter.flush(30)
        client.register_module(ModuleInfo(NAME, estimated_duration=500))
        call_in_turn(usual, asking, 20)
        assert reporter.flush(30)
        assert registry.estimate_duration(NAME, basis="auto") == pytest.approx(100, rel=0.2)
        assert asking.limit_ms() == 600


def test_a_quick_model_under_the_same_version_is_seen_within_the_window(registry: Registry) -> None:
    with reporting(registry.path, SELDOM) as reporter:
        asking = Asking(registry, reporter, NAME)
        call_in_turn(stepping(100, 0), asking, 500)
        for _ in range(8):  # two blocks, each filled by reports past its end
            call_in_turn(usual, asking, 512)
            assert reporter.flush(30)
        assert registry.estimate_duration(NAME, basis="observed") == pytest.approx(100, rel=0.05)
        assert asking.limit_ms() < 300


def test_the_first_completed_call_after_an_outage_restores_the_limit(registry: Registry) -> None:
    with reporting(registry.path, SELDOM) as reporter:
        asking = Asking(registry, reporter, NAME)
        call_in_turn(usual, asking, 500)
        assert reporter.flush(30)
        before = asking.limit_ms()
        call_in_turn(out(0, 50), asking, 50)
        assert reporter.flush(30)
        assert asking.limit_ms() == CEILING
        call_in_turn(usual, asking, 1)
        assert asking.limit_ms() <= CEILING  # this process knows, the merged backoff is cleared with the next report
        assert reporter.flush(30)
        assert asking.limit_ms() == pytest.approx(before, rel=0.1)


def test_hanging_calls_do_not_drive_the_limit_up(registry: Registry) -> None:
    with reporting(registry.path, SELDOM) as reporter:
        asking = Asking(registry, reporter, NAME)
        for turn in range(4):
            call_in_turn(hanging(0.03), asking, 500, seed=turn)
            assert reporter.flush(30)
        assert asking.limit_ms() < 5000


def test_own_calls_count_before_they_are_merged_and_under_any_name(registry: Registry) -> None:
    with reporting(registry.path, SELDOM) as reporter, registry.snapshot() as snapshot:
        assert registry.routing_recommendation(NAME, basis="observed").timeout == DECLARED_TIMEOUT
        reporter.record("qa", 3000.0, error="timeout", limit_ms=3000)
        for queries in (registry, snapshot):
            assert queries.routing_recommendation(NAME, basis="observed").timeout == 6000
            assert queries.routing_recommendation("Qa", basis="auto").timeout == 6000
        reporter.record(("no.such", NAME), 2000.0)
        assert registry.routing_recommendation(NAME, basis="observed").timeout == 6000, "under another name"
        reporter.record("qa", 2000.0)
        assert registry.routing_recommendation(NAME, basis="observed").timeout == 3000
        assert reporter.flush(30)
        assert registry.usage(NAME).calls == 3
