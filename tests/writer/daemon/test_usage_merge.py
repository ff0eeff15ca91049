"""Merging what workers report: once, under the registered name, apart from the modules, whatever is sent."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry import InvalidArgumentError, ModuleInfo, Registry, RegistryWriter, UnknownModuleError
from dspy_registry.registry_store.evidence import Evidence
from dspy_registry.registry_store.layout import MAX_NAME_BYTES
from dspy_registry.registry_store.outcome_kinds import CANCELLED, KINDS
from dspy_registry.registry_store.reports import Batch, Report, encode_reports, read_batch
from dspy_registry.registry_store.usage import LARGEST_COUNT, Buckets, Ring
from dspy_registry.registry_store.usage_rows import calls_lost, ledger_key
from dspy_registry.writer.client.pending_calls import BATCH_BYTES, NAMES_KEPT, Pending
from dspy_registry.writer.daemon import usage_merge as usage_merge
from dspy_registry.writer.daemon.usage_merge import UsageMerger, forget_reporters
from dspy_registry.writer.draft import Draft
from tests.support.usage_helpers import MINUTE, NOW, batches, merge, moment, recorded

REPORTER = b"reporter of test"


@pytest.fixture
def writer(seeded_registry: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(seeded_registry) as writer:
        yield writer


@pytest.fixture
def registry(writer: RegistryWriter, seeded_registry: Path) -> Iterator[Registry]:
    with Registry(seeded_registry) as registry:
        yield registry


def lost(writer: RegistryWriter) -> int:
    environment = writer.store.environment
    with environment.reading() as txn:
        return calls_lost(txn, environment.dbs)


def test_counts_times_tokens_and_cost_add_up(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([("dspy.Predict", 100.0, True, 50, 10, 4, 0.5)] * 3, now=NOW - MINUTE))
    merge(writer, batches([("dspy.Predict", 300.0, True, 5000, 1, 2, 0.25), ("dspy.Predict", 7.0, False)]))
    usage = registry.usage("dspy.Predict")
    assert (usage.calls, usage.errors, usage.error_rate) == (5, 1, 0.2)
    assert (usage.tokens_in, usage.tokens_out) == (31, 14)
    assert (usage.cost_usd, usage.priced_calls) == (1.75, 4)
    assert usage.cost_usd_per_call == 1.75 / 4
    assert (usage.first_used, usage.last_used) == (NOW - MINUTE, NOW)
    assert {size: seen.calls for size, seen in usage.durations.items()} == {"small": 3, "large": 1}
    assert usage.durations["small"].p50 == pytest.approx(100, rel=0.02)
    assert usage.durations["large"].p99 == pytest.approx(300, rel=0.02)
    assert (usage.overall.calls, usage.overall.p50) == (4, pytest.approx(100, rel=0.02))
    assert usage.calls_by_minute(NOW / 1000)[-3:] == (0, 3, 2)
    assert sum(usage.calls_by_hour(NOW / 1000)) == 5


def test_a_failed_call_has_no_duration(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([("dspy.Predict", 1.0, False)] * 50))
    assert registry.usage("dspy.Predict").overall.calls == 0


def test_a_batch_sent_twice_counts_once(writer: RegistryWriter, registry: Registry) -> None:
    sent = batches([("dspy.Predict", 1.0)], reporter=REPORTER)
    merge(writer, sent)
    merge(writer, [*sent, *sent])
    merge(writer, batches([("dspy.Predict", 1.0)], reporter=REPORTER, number=2))
    merge(writer, sent)
    merge(writer, batches([("dspy.Predict", 1.0)]))
    assert registry.usage("dspy.Predict").calls == 3


def test_two_merges_of_one_commit_add_up(writer: RegistryWriter, registry: Registry) -> None:
    merger = UsageMerger()
    first, second = (batches([("dspy.Predict", 1.0)], reporter=REPORTER, number=number) for number in (1, 2))

    def stage(draft: Draft) -> None:
        for sent in (first, second, first):
            child = draft.child()
            merger.stage(child, sent, NOW)
            draft.absorb(child)

    writer.store.committer.commit(stage)
    assert registry.usage("dspy.Predict").calls == 2


def test_usage_makes_no_revision_and_drops_no_cached_module(writer: RegistryWriter, registry: Registry) -> None:
    for _ in range(5):  # a record is kept once it has been read more than once
        kept = registry.get_module("dspy.Predict")
        answers = registry.find_by_capability("reasoning")
    revision = registry.revision
    for number in range(1, 20):
        merge(writer, batches([("dspy.Predict", 1.0)], reporter=REPORTER, number=number))
        assert registry.usage("dspy.Predict").calls == number
        assert registry.get_module("dspy.Predict") is kept
        assert registry.find_by_capability("reasoning") is answers
    assert registry.revision == revision == writer.revision


def test_usage_lands_with_the_changes_of_its_group(writer: RegistryWriter, registry: Registry) -> None:
    merger = UsageMerger()

    def stage(draft: Draft) -> None:
        draft.register(ModuleInfo("acme.New"))
        merger.stage(draft, batches([("acme.New", 1.0)]), NOW)

    revision = registry.revision
    assert writer.store.committer.commit(stage) == revision + 1
    assert registry.usage("acme.New").calls == 1
    assert registry.get_module("acme.New").name == "acme.New"


def test_usage_is_kept_under_the_registered_name(writer: RegistryWriter, registry: Registry) -> None:
    writer.register_module(ModuleInfo("acme.Summarise"))
    writer.set_alias("short", "acme.Summarise")
    names = ["acme.Summarise", "Summarise", "short", ("x.y.Summarise", "acme.Summarise"), ("no.Such", "Summarise")]
    merge(writer, batches([(name, 1.0) for name in names]))
    assert registry.usage("acme.Summarise").calls == len(names)
    assert [usage.name for usage in registry.usages()] == ["acme.Summarise"]


def test_usage_of_what_nobody_registered_is_kept(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([("__main__.Mine", 5.0)] * 2 + [(("acme.Best", "acme.impl.Best"), 1.0)]))
    assert registry.usage("__main__.Mine").calls == 2
    assert registry.usage("acme.Best").calls == 1
    assert "__main__.Mine" not in registry
    with pytest.raises(UnknownModuleError):
        registry.usage("acme.impl.Best")
    writer.register_module(ModuleInfo("acme.Best"))
    assert registry.usage("acme.Best").calls == 1


def test_a_module_never_used_has_nothing_to_show(registry: Registry) -> None:
    usage = registry.usage("ReAct")
    assert (usage.name, usage.calls, usage.error_rate, usage.cost_usd_per_call) == ("dspy.ReAct", 0, None, None)
    assert set(usage.calls_by_minute()) == {0}
    assert registry.usages() == []


def test_usage_outlives_its_module(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([("dspy.ReAct", 1.0)]))
    writer.unregister_module("dspy.ReAct")
    assert registry.usage("dspy.ReAct").calls == 1


def test_names_that_nobody_registered_are_bounded(
    writer: RegistryWriter, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_merge, "UNREGISTERED_KEPT", 5)
    monkeypatch.setattr(usage_merge, "REPORTERS_KEPT", 0)
    room = 5 + len(registry)
    merge(writer, batches([(f"stray.N{at:03}", 1.0) for at in range(100)], reporter=REPORTER))
    merge(writer, batches([("dspy.Predict", 1.0), ("stray.N000", 1.0), ("stray.late", 1.0)]))
    assert len(registry.usages()) == room + 1
    assert (registry.usage("dspy.Predict").calls, registry.usage("stray.N000").calls) == (1, 2)
    assert lost(writer) == 100 - room + 1


def test_a_damaged_row_begins_anew(writer: RegistryWriter, registry: Registry) -> None:
    sent = batches([("dspy.Predict", 1.0)], reporter=REPORTER)
    merge(writer, sent)

    def damage(draft: Draft) -> None:
        draft.usage[b"dspy.Predict"] = b"damaged"
        draft.usage[ledger_key(REPORTER)] = b"damaged"

    writer.store.committer.commit(damage)
    merge(writer, batches([("dspy.Predict", 1.0)] * 4, reporter=REPORTER, number=2))
    assert registry.usage("dspy.Predict").calls == 4


def test_long_silent_reporters_are_forgotten(writer: RegistryWriter) -> None:
    reporters = [bytes([at]) * 16 for at in range(10)]
    for at, reporter in enumerate(reporters):
        merge(writer, batches([("dspy.Predict", 1.0)], reporter=reporter), now=NOW + at)
    writer.store.committer.commit(lambda draft: forget_reporters(draft, 10))
    assert known(writer, reporters) == reporters
    writer.store.committer.commit(lambda draft: forget_reporters(draft, 9))
    assert known(writer, reporters) == reporters[5:]


def known(writer: RegistryWriter, reporters: list[bytes]) -> list[bytes]:
    environment = writer.store.environment
    with environment.reading() as txn:
        return [each for each in reporters if txn.get(ledger_key(each), None, environment.dbs.usage) is not None]


# What a batch may hold


def test_a_clock_that_is_ahead_is_held_to_ours(writer: RegistryWriter, registry: Registry) -> None:
    merge(writer, batches([("dspy.Predict", 1.0)], now=NOW + 10_000 * MINUTE))
    usage = registry.usage("dspy.Predict")
    assert (usage.first_used, usage.last_used) == (NOW, NOW)
    assert usage.calls_by_minute(NOW / 1000)[-1] == 1


def test_rings_follow_a_clock_that_was_years_ahead_back(writer: RegistryWriter, registry: Registry) -> None:
    years = 10 * 365 * 24 * 60 * MINUTE
    merge(writer, batches([("dspy.Predict", 1.0)], now=NOW + years), now=NOW + years)
    merge(writer, batches([("dspy.Predict", 1.0)] * 2, now=NOW), now=NOW)
    usage = registry.usage("dspy.Predict")
    assert usage.calls == 3
    assert usage.last_used == NOW
    assert (usage.calls_by_minute(NOW / 1000)[-1], usage.calls_by_hour(NOW / 1000)[-1]) == (2, 2)


def test_counts_stop_where_a_number_ends(writer: RegistryWriter, registry: Registry) -> None:
    most = Buckets(LARGEST_COUNT, ((5, LARGEST_COUNT),))
    report = Report(
        ("dspy.Predict",),
        LARGEST_COUNT,
        LARGEST_COUNT,
        0,
        0,
        minutes=((NOW // MINUTE, LARGEST_COUNT),),
        kinds=(LARGEST_COUNT,) * 20,
        failed=((NOW // MINUTE, LARGEST_COUNT),),
        uncounted=((NOW // MINUTE, LARGEST_COUNT),),
        evidence={
            "normal": Evidence(most),
            "small": Evidence(later=most, beyond=most, last_row=(LARGEST_COUNT, 1.0)),
            "odd": Evidence(Buckets(1)),
        },
    )
    for number in (1, 2, 3):
        merge(writer, [Batch(REPORTER, number, (report,), LARGEST_COUNT)])
    usage = registry.usage("dspy.Predict")
    assert (usage.calls, usage.errors, usage.calls_by_minute(NOW / 1000)[-1]) == (LARGEST_COUNT,) * 3
    assert set(usage.durations) == {"normal"}  # of a call that timed out, only the limit is known
    assert lost(writer) == LARGEST_COUNT


GOOD: dict[str, Any] = {"names": ("a",), "calls": 1, "errors": 0, "first_used": 0, "last_used": 0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"calls": -1},
        {"calls": LARGEST_COUNT + 1},
        {"names": ()},
        {"names": ("a",) * 9},
        {"cost_usd": math.nan},
        {"cost_usd": math.inf},
        {"cost_usd": -0.5},
        {"minutes": ((-1, 1),)},
        {"minutes": ((1, 1),) * 500},
        {"version": -1},
        {"version": 2**32},
        {"began": (-1, 0)},
        {"kinds": (-1,)},
        {"kinds": (1,) * 100},
        {"failed": ((1, -1),)},
        {"evidence": {"normal": Evidence(Buckets(0, ((2**31, 1),)))}},
        {"evidence": {"normal": Evidence(Buckets(0, ((-5000, 1),)))}},
        {"evidence": {"normal": Evidence(recent=(math.nan, 0.0))}},
        {"evidence": {"normal": Evidence(first=(math.inf,))}},
        {"evidence": {"normal": Evidence(first=(1.0,) * 4)}},
        {"evidence": {"normal": Evidence(last_row=(-1, 0.0))}},
    ],
    ids=str,
)
def test_a_batch_out_of_bounds_is_refused(wrong: dict[str, Any]) -> None:
    assert read_batch(encode_reports(Batch(REPORTER, 1, (Report(**GOOD),))))
    with pytest.raises(InvalidArgumentError):
        read_batch(encode_reports(Batch(REPORTER, 1, (Report(**{**GOOD, **wrong}),))))


def test_deep_nesting_is_refused_before_it_is_followed() -> None:
    deep = b"\x91" * 1_000_000
    head = b"\x95" + msgspec.msgpack.encode(REPORTER) + b"\x01\x90\x00"
    for payload in (deep, head + deep):
        with pytest.raises(InvalidArgumentError):
            read_batch(payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_refused(payload: bytes) -> None:
    with contextlib.suppress(InvalidArgumentError):
        assert isinstance(read_batch(payload), Batch)


# What a process aggregates


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
KINDS_TOLD = st.sampled_from(KINDS) | ANYTHING
NAMES = st.text(max_size=300) | st.tuples(st.text(max_size=20), st.text(max_size=20)) | ANYTHING | st.lists(st.text())


@given(st.lists(st.tuples(NAMES, *[ANYTHING] * 6, KINDS_TOLD, *[ANYTHING] * 4), max_size=20))
def test_whatever_is_recorded_can_be_sent(calls: list[tuple[Any, ...]]) -> None:
    pending = Pending()
    for call in calls:
        pending.add(call, moment())  # type: ignore[arg-type]
    sent = [read_batch(payload) for _, payload in pending.take(REPORTER, 1)]
    reports = [report for batch in sent for report in batch.reports]
    assert sum(sum(report.kinds) for report in reports) + sum(b.lost for b in sent) == len(calls)
    cancelled = KINDS.index(CANCELLED)
    assert all(report.calls == sum(report.kinds) - report.kinds[cancelled] for report in reports)
    assert not pending


def test_names_that_a_process_aggregates_are_bounded() -> None:
    sent = batches([(f"stray.{at}", 1.0) for at in range(NAMES_KEPT + 7)])
    assert sum(len(batch.reports) for batch in sent) == NAMES_KEPT
    assert sum(batch.lost for batch in sent) == 7


def test_much_is_sent_in_several_numbered_batches() -> None:
    names = [str(at).rjust(MAX_NAME_BYTES, "n") for at in range(NAMES_KEPT)]
    calls = [(name, 1.1**power) for name in names for power in range(0, 200, 2)]
    pending = Pending()
    for name, duration in calls:
        pending.add(recorded(name, duration), moment())
    pending.lost = 3
    taken = pending.take(REPORTER, 5)
    sent = [read_batch(payload) for _, payload in taken]
    assert len(taken) > 1
    assert [number for number, _ in taken] == [batch.number for batch in sent] == list(range(5, 5 + len(taken)))
    assert max(len(payload) for _, payload in taken) < 2 * BATCH_BYTES
    assert [report.names[0] for batch in sent for report in batch.reports] == names
    assert [batch.lost for batch in sent] == [3] + [0] * (len(sent) - 1)


def test_minutes_that_wait_for_a_daemon_are_bounded() -> None:
    pending = Pending()
    for minute in range(1000):
        pending.add(recorded("dspy.Predict", 1.0), moment(NOW + minute * MINUTE))
    ((_, payload),) = pending.take(REPORTER, 1)
    (report,) = read_batch(payload).reports
    assert report.calls == 1000
    assert report.minutes[-1] == (NOW // MINUTE + 999, 1)


def test_a_ring_is_read_from_any_later_time() -> None:
    ring = Ring(10, (1, 2, 3))
    assert ring.until(10, 5) == (0, 0, 1, 2, 3)
    assert ring.until(12, 4) == (2, 3, 0, 0)
    assert ring.until(9, 2) == (1, 2)
    assert Ring().until(100, 3) == (0, 0, 0)
