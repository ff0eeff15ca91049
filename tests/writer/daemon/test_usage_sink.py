"""Batches of usage in the daemon: how much of it they take, and that each is answered."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dspy_registry import InvalidArgumentError, Registry
from dspy_registry.registry_store.evidence import Evidence
from dspy_registry.registry_store.protocol import Done, ReportUsage, frame
from dspy_registry.registry_store.reports import Batch, Report, encode_reports
from dspy_registry.registry_store.usage import SIZES, Buckets
from tests.support.daemon_process import Served, daemon, module

MIB = 1024 * 1024


def large_batch(reporter: bytes) -> bytes:
    """As large as a message may be; decoded it takes some 25 times as much."""
    buckets = Buckets(0, tuple((key, 1) for key in range(-100, 120)))
    minutes = tuple((minute, 1) for minute in range(120))
    reports = (
        Report((f"acme.m{n}",), 1, 0, 1, 1, minutes=minutes, evidence=dict.fromkeys(SIZES, Evidence(buckets)))
        for n in range(300)
    )
    return encode_reports(Batch(reporter, 1, tuple(reports)))


def report(served: Served, count: int) -> list[object]:
    """Large batches from so many reporters at once, and how each was answered."""

    def send() -> None:
        with served.peer() as peer:
            peer.socket.sendall(frame(ReportUsage(1, large_batch(os.urandom(16)))))
            answers.append(peer.receive())

    answers: list[object] = []
    threads = [threading.Thread(target=send) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.full
def test_batches_wait_encoded_and_are_merged_a_few_at_a_time(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.client() as client:
        before = served.memory
        most = 0
        done = threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.is_set():
                most = max(most, served.memory)
                client.register_module(module("acme.other", category=f"c{most}"))  # others have their turn

        watching = threading.Thread(target=watch)
        watching.start()
        answers = report(served, 16)
        done.set()
        watching.join()
        assert all(isinstance(answer, Done) for answer in answers)
        assert client.status().sections["usage"]["merges"] >= 8
        assert most - before < 200 * MIB
    with Registry(registry_folder) as registry:
        assert {registry.usage(f"acme.m{n}").calls for n in range(300)} == {16}


def test_what_is_no_batch_is_refused_at_once(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.client() as client:
        with pytest.raises(InvalidArgumentError):
            client.report_usage(b"\xc1")
        client.report_usage(large_batch(bytes(16)))
        client.report_usage(encode_reports(Batch(bytes(16), 2, ())))
        assert client.status().sections["usage"]["batches"] == 2
