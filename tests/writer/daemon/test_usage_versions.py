"""Statistics by version: which version a call counts for, how it counts, and when the statistics go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import InvalidArgumentError, ModuleInfo, Registry, RegistryWriter, UnknownModuleError
from dspy_registry.registry_store.advice import Standing
from dspy_registry.registry_store.boot_clock import Clocks
from dspy_registry.registry_store.layout import HISTORY_VERSIONS
from dspy_registry.registry_store.lifetime_durations import BOUNDS
from dspy_registry.registry_store.outcome_kinds import KINDS
from dspy_registry.registry_store.reports import Batch, read_batch
from dspy_registry.registry_store.usage import VersionUsage
from dspy_registry.registry_store.usage_rows import load_versions_of, version_of_key
from dspy_registry.writer.client.pending_calls import Pending
from dspy_registry.writer.client.recorded_call import Moment, moment_at
from dspy_registry.writer.daemon.usage_merge import UsageMerger
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.usage_reset import reset_usage
from tests.support.usage_helpers import MINUTE, NOW, batches, merge, recorded

NAME = "acme.Qa"


@pytest.fixture
def writer(seeded_registry: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(seeded_registry) as writer:
        writer.register_module(ModuleInfo(NAME, estimated_duration=100))
        yield writer


@pytest.fixture
def registry(writer: RegistryWriter, seeded_registry: Path) -> Iterator[Registry]:
    with Registry(seeded_registry) as registry:
        yield registry


def next_version(writer: RegistryWriter, duration: int) -> None:
    """Versions differ in their times, which have milliseconds."""
    time.sleep(0.002)
    writer.register_module(ModuleInfo(NAME, estimated_duration=duration))


def began_at(registry: Registry, version: int) -> int:
    return next(kept.provenance.updated_at for kept in registry.history(NAME) if kept.provenance.version == version)


def ended(now: int, before: int, duration: float = 0.0) -> list[Batch]:
    """A call that was taken from the queue at `now`, and ended after `before`."""
    pending = Pending()
    pending.add(recorded(NAME, duration), Moment(now, before, 0.0))
    return [read_batch(payload) for _, payload in pending.take(b"r" * 16, now)]


def counted(registry: Registry, *versions: int) -> list[int]:
    return [registry.usage(NAME, version).calls for version in versions]


def version_keys(writer: RegistryWriter) -> list[tuple[str, int]]:
    environment = writer.store.environment
    with environment.reading() as txn:
        found = [version_of_key(key) for key, _ in txn.cursor(environment.dbs.usage)]
    return [key for key in found if key is not None]


# Which version


def test_a_call_that_began_within_the_millisecond_of_a_version_is_of_it(
    writer: RegistryWriter, registry: Registry
) -> None:
    """Although the clock is read at the end of a millisecond, and the call took less than one."""
    next_version(writer, 200)
    second = began_at(registry, 2)
    pending = Pending()
    moment = moment_at(Clocks((second + 5) * 1_000_000 + 900_000, 100.0, 0.0), before=second)
    pending.add(recorded(NAME, 1.0, began=100.0 - 0.0058), moment)
    merge(writer, [read_batch(payload) for _, payload in pending.take(b"r" * 16, 1)], now=moment.now)
    assert counted(registry, 1, 2) == [0, 1]


def test_a_call_counts_for_the_version_in_force_when_it_began(writer: RegistryWriter, registry: Registry) -> None:
    for duration in (200, 300):
        next_version(writer, duration)
    for version in (1, 2, 3):
        since = began_at(registry, version)
        merge(writer, ended(since, since), now=since + MINUTE)
        assert counted(registry, 1, 2, 3) == [1] * version + [0] * (3 - version)
    late = began_at(registry, 2)
    merge(writer, ended(late + 5000, late + 5000, 5000.0), now=NOW)
    assert counted(registry, 1, 2, 3) == [1, 2, 1]
    assert registry.usage(NAME).calls == 4


def test_a_mixture_counts_for_the_module_alone(writer: RegistryWriter, registry: Registry) -> None:
    next_version(writer, 200)
    since = began_at(registry, 2)
    merge(writer, ended(since + 1000, since - 1), now=NOW)
    assert counted(registry, 1, 2) == [0, 0]
    assert registry.usage(NAME).calls == 1


def test_what_began_before_the_first_version_counts_for_it(writer: RegistryWriter, registry: Registry) -> None:
    since = began_at(registry, 1)
    merge(writer, ended(since + 10, since - 10), now=NOW)
    assert counted(registry, 1) == [1]


def test_a_version_that_is_told_counts_whenever_its_calls_began(writer: RegistryWriter, registry: Registry) -> None:
    next_version(writer, 200)
    merge(writer, batches([(NAME, 50.0)] * 3, version=1))
    merge(writer, batches([(NAME, 50.0)] * 2, version=2))
    merge(writer, batches([(NAME, 50.0)], version=9))
    assert counted(registry, 1, 2, 9) == [3, 2, 0]
    assert registry.usage(NAME).calls == 6


def test_calls_beyond_the_queue_count_for_the_only_version(writer: RegistryWriter, registry: Registry) -> None:
    pending = Pending()
    pending.add_counts(NAME, True, None, 7, NOW)
    pending.add_counts(NAME, True, "timeout", 2, NOW)
    merge(writer, [read_batch(payload) for _, payload in pending.take(b"r" * 16, 1)])
    usage = registry.usage(NAME, 1)
    assert (usage.calls, usage.errors, usage.errors_by_kind) == (9, 2, {"timeout": 2})


def test_names_that_nobody_registered_have_no_versions(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([("stray.Name", 50.0)]))
    merge(writer, batches([("stray.Name", 50.0)], version=1))
    assert version_keys(writer) == []
    assert registry.usage("stray.Name", 1) == VersionUsage("stray.Name", 1)


# What is counted


def test_every_kind_is_counted(writer: RegistryWriter, registry: Registry) -> None:
    for number, kind in enumerate(KINDS, 1):
        merge(writer, batches([(NAME, 50.0)] * number, error=None if kind == "ok" else kind))
    for usage in (registry.usage(NAME), registry.usage(NAME, 1)):
        assert usage.kinds == tuple(range(1, len(KINDS) + 1))
        assert usage.errors_by_kind == dict(zip(KINDS[1:6], range(2, 7), strict=True))
        assert usage.calls == sum(range(1, 8)), "all but the cancelled ones"
        assert usage.errors == sum(range(2, 7)), "all that failed but the caller's own"
        assert usage.errors_by_minute(NOW / 1000)[-1] == usage.errors
    assert registry.usage(NAME, 1).evaluated_by_minute(NOW / 1000)[-1] == sum(range(1, 7))
    assert registry.usage(NAME).calls_by_minute(NOW / 1000)[-1] == sum(range(1, 8))
    assert registry.usage(NAME).errors_by_hour(NOW / 1000)[-1] == sum(range(2, 7))


def test_a_limit_below_the_p90_is_the_callers_own_in_all_counts(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([(NAME, 100.0)] * 40))
    merge(writer, batches([(NAME, 10.0)] * 5, error="timeout", limit_ms=10.0))
    merge(writer, batches([(NAME, 300.0)] * 2, error="timeout", limit_ms=300.0))
    for usage in (registry.usage(NAME), registry.usage(NAME, 1)):
        assert (usage.calls, usage.errors, usage.errors_by_kind) == (47, 2, {"timeout": 2})
        assert usage.kinds[KINDS.index("caller")] == 5
        assert sum(usage.errors_by_minute(NOW / 1000)) == 2
    assert sum(registry.usage(NAME, 1).evaluated_by_minute(NOW / 1000)) == 42
    assert registry.usage(NAME, 1).standing["normal"].backoff == 600


def test_a_timeout_without_a_limit_had_its_duration(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([(NAME, 700.0, False)], error="timeout"))
    assert registry.usage(NAME, 1).standing["normal"].backoff == 1400


def test_standing_is_by_size_and_version(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([(NAME, 100.0, True, 50)] * 30 + [(NAME, 900.0, True, 5000)]))
    next_version(writer, 200)
    found = registry.usage(NAME, 1).standing
    assert set(found) == {"small", "large"}
    assert (found["small"].completed, found["small"].longest) == (30, 100)
    assert found["large"] == Standing(1, *[pytest.approx(900, rel=0.011)] * 3, 900, 0)  # type: ignore[list-item]
    assert registry.usage(NAME, 2).standing == {}


def test_a_damaged_row_of_a_version_begins_again(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([(NAME, 100.0)]))
    ((name, version),) = version_keys(writer)

    def damage(draft: Draft) -> None:
        draft.usage[f"{name}\0".encode() + version.to_bytes(4, "big")] = b"damaged"

    writer.store.committer.commit(damage)
    merge(writer, batches([(NAME, 100.0)] * 2))
    assert counted(registry, 1) == [2]
    assert registry.usage(NAME).calls == 3


def test_durations_of_the_whole_life_stay_when_the_window_forgets_them(writer: RegistryWriter) -> None:
    for milliseconds in (4_000.0, 80.0, 80.0, 80.0, 80.0):
        merge(writer, batches([(NAME, milliseconds)] * 1500, version=1))
    merge(writer, batches([(NAME, 100.0, False)] * 5, error="timeout", version=1))

    environment = writer.store.environment
    with environment.reading() as txn:
        (found,) = load_versions_of(txn, environment.dbs, NAME, 4)
    counts = dict(zip(BOUNDS, found.durations.counts, strict=False))
    assert (counts[0.1], counts[5]) == (6000, 1500)
    assert sum(found.durations.counts) == 7500, "completed calls only"
    assert found.usage.standing["normal"].p99 < 4_000, "the window has forgotten"


# When they go


def test_statistics_go_with_the_version(writer: RegistryWriter, registry: Registry) -> None:
    for number in range(2, HISTORY_VERSIONS + 4):
        merge(writer, batches([(NAME, 100.0)], version=number - 1))
        writer.register_module(ModuleInfo(NAME, estimated_duration=100 * number))
    kept = [kept.provenance.version for kept in registry.history(NAME)]
    assert sorted(version for _, version in version_keys(writer)) == sorted(kept[1:])
    assert registry.usage(NAME).calls == HISTORY_VERSIONS + 2


def test_statistics_of_versions_go_with_the_module(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([(NAME, 100.0)]))
    writer.unregister_module(NAME)
    assert version_keys(writer) == []
    assert registry.usage(NAME).calls == 1
    merge(writer, batches([(NAME, 100.0)], version=1))
    assert version_keys(writer) == []


def test_what_is_merged_in_the_commit_that_removes_the_module_goes_too(
    writer: RegistryWriter, registry: Registry
) -> None:
    def stage(draft: Draft) -> None:
        UsageMerger().stage(draft, batches([(NAME, 100.0)]), NOW)
        draft.unregister(NAME)

    writer.store.committer.commit(stage)
    assert version_keys(writer) == []
    assert registry.usage(NAME).calls == 1


def test_a_reset_forgets_a_module_or_a_version(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([(NAME, 100.0)] * 30))
    next_version(writer, 200)
    merge(writer, batches([(NAME, 100.0)] * 30, version=2))
    revision = registry.revision
    assert registry.estimate_duration(NAME, basis="observed") == 100
    writer.reset_usage(NAME, 2)
    assert registry.estimate_duration(NAME, basis="observed") == 200, "readers notice at once"
    assert (counted(registry, 1, 2), registry.usage(NAME).calls) == ([30, 0], 60)
    writer.reset_usage("qa")
    assert (counted(registry, 1, 2), registry.usage(NAME).calls) == ([0, 0], 0)
    assert registry.revision == revision
    merge(writer, batches([("stray.Name", 100.0)]))
    writer.reset_usage("stray.Name")
    assert registry.usages() == []
    writer.reset_usage("dspy.Predict")  # has none
    with pytest.raises(UnknownModuleError):
        writer.reset_usage("stray.Name")
    with pytest.raises(InvalidArgumentError):
        writer.reset_usage(NAME, 0)


def test_a_reset_forgets_what_is_staged_before_it(writer: RegistryWriter, registry: Registry) -> None:
    def stage(draft: Draft) -> None:
        UsageMerger().stage(draft, batches([(NAME, 100.0)]), NOW)
        reset_usage(draft, NAME, None)

    writer.store.committer.commit(stage)
    assert (version_keys(writer), registry.usages()) == ([], [])
