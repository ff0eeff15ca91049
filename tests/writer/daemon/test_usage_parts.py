"""A large batch is merged in parts, each in a commit of its own, and still counts once."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import InvalidArgumentError, Registry, RegistryWriter
from dspy_registry.registry_store.evidence import Evidence
from dspy_registry.registry_store.protocol import Done, ReportUsage
from dspy_registry.registry_store.reports import Batch, EncodedBatch, Report, encode_reports, open_batch, read_report
from dspy_registry.registry_store.usage import SIZES, Buckets
from dspy_registry.registry_store.usage_rows import calls_lost
from dspy_registry.writer.daemon.lifecycle import Daemon
from dspy_registry.writer.daemon.usage_merge import UsageMerger
from dspy_registry.writer.daemon.usage_sink import UsageSink
from dspy_registry.writer.draft import Draft
from tests.support.daemon_process import daemon
from tests.support.usage_helpers import NOW, merge
from tests.writer.daemon.test_hooks import outcome_of

COUNT = 12


@pytest.fixture
def writer(seeded_registry: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(seeded_registry) as writer:
        yield writer


def batch(number: int = 1, reporter: bytes = b"reporter of test", count: int = COUNT, lost: int = 3) -> Batch:
    evidence = dict.fromkeys(SIZES, Evidence(Buckets(0, tuple((key, 1) for key in range(30)))))
    reports = (Report((f"acme.m{n}",), n + 1, 0, NOW, NOW, evidence=evidence) for n in range(count))
    return Batch(reporter, number, tuple(reports), lost)


def opened(sent: Batch) -> EncodedBatch:
    return open_batch(encode_reports(sent))


def merge_some(writer: RegistryWriter, sent: list[EncodedBatch], most: int) -> int:
    """One commit, by a merger that knows nothing of the former ones."""
    whole = -1

    def stage(draft: Draft) -> None:
        nonlocal whole
        whole = UsageMerger().stage_some(draft, sent, most, NOW)

    writer.store.committer.commit(stage)
    return whole


def calls(folder: Path, count: int = COUNT) -> list[int]:
    with Registry(folder) as registry:
        return [registry.usage(f"acme.m{n}").calls for n in range(count)]


def test_each_commit_merges_a_part_and_all_together_the_whole_once(
    writer: RegistryWriter, seeded_registry: Path
) -> None:
    sent = opened(batch())
    for merged in range(1, COUNT):
        assert merge_some(writer, [sent], 1) == 0
        assert calls(seeded_registry, merged) == list(range(1, merged + 1))
    assert merge_some(writer, [sent], 1) == 1
    for most in (1, 10**9):
        assert merge_some(writer, [sent], most) == 1
    merge(writer, [batch()])
    assert calls(seeded_registry) == list(range(1, COUNT + 1))
    with writer.store.environment.reading() as txn:
        assert calls_lost(txn, writer.store.environment.dbs) == 3


@pytest.mark.parametrize("seed", range(10))
def test_parts_of_any_size_of_batches_that_come_twice_add_up(
    writer: RegistryWriter, seeded_registry: Path, seed: int
) -> None:
    dice = random.Random(seed)
    reporters = [bytes([n]) * 16 for n in range(3)]
    waiting = [opened(batch(number, each)) for number in (1, 2, 3) for each in reporters]
    while waiting:
        whole = merge_some(writer, waiting, dice.choice((1, 200, 2000, 20_000)))
        again = waiting[: dice.randint(0, 1)]  # the answer was lost, and it is sent again before those after it
        waiting = again + waiting[whole:] if dice.random() < 0.3 else waiting[whole:]
    assert calls(seeded_registry) == [9 * (n + 1) for n in range(COUNT)]


def test_a_batch_that_is_never_finished_does_not_keep_out_the_next(
    writer: RegistryWriter, seeded_registry: Path
) -> None:
    merge_some(writer, [opened(batch(1))], 1)
    assert merge_some(writer, [opened(batch(2))], 10**9) == 1
    assert calls(seeded_registry) == [2, *range(2, COUNT + 1)]
    assert merge_some(writer, [opened(batch(1))], 10**9) == 1
    assert calls(seeded_registry) == [2, *range(2, COUNT + 1)]


def test_what_a_batch_holds_is_looked_at_one_by_one() -> None:
    sent = opened(batch())
    assert tuple(map(read_report, sent.reports)) == batch().reports
    with pytest.raises(InvalidArgumentError):
        open_batch(b"\xc1")
    wrong = encode_reports((b"reporter of test", 1, ((("a",), 1, 0, 1, 1), (("a",), -1, 0, 1, 1)), 0))
    with pytest.raises(InvalidArgumentError):
        list(map(read_report, open_batch(wrong).reports))


def test_a_daemon_merges_a_large_batch_in_several_commits_and_answers_once(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.client() as client, served.peer() as peer:
        sent = encode_reports(batch(1, os.urandom(16), 60))
        assert len(sent) > 30_000
        assert isinstance(peer.ask(ReportUsage(1, sent))[0], Done)
        assert calls(registry_folder, 60) == list(range(1, 61))
        status = client.status().sections["usage"]
        assert status["batches"] == 1
        assert status["merges"] > 3


def test_a_daemon_that_ends_finishes_what_it_has_begun_or_goes_on_later(registry_folder: Path) -> None:
    sent = encode_reports(batch(1, bytes(16), 200))
    with daemon(registry_folder) as served, served.peer() as peer:
        peer.send(ReportUsage(1, sent))
        with served.client() as client:
            client.status()
    with daemon(registry_folder) as served, served.peer() as peer:
        peer.ask(ReportUsage(1, sent))
    assert calls(registry_folder, 200) == list(range(1, 201))


def test_a_batch_that_is_being_looked_at_when_the_daemon_ends_is_merged(registry_folder: Path) -> None:
    async def hook(served: Daemon) -> bool:
        sink = UsageSink(served)
        merging = asyncio.create_task(sink.run())
        accepted = sink.take(encode_reports(batch(count=60)))
        while sink._waiting:
            await asyncio.sleep(0)
        merging.cancel()
        await asyncio.wait([merging])
        return accepted.done()

    assert outcome_of(registry_folder, hook)
    assert calls(registry_folder, 60) == list(range(1, 61))
