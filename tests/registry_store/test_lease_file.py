"""The file `leases`: many limits, replacing it, damage; and who may probe a half-open circuit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dspy_registry.readers import probes
from dspy_registry.readers.leases import Leases
from dspy_registry.readers.probes import claim_probe
from dspy_registry.registry_store.byte_locks import Hold
from dspy_registry.registry_store.errors import LimitReachedError, StoreError
from dspy_registry.registry_store.lease_file import (
    LEASES_FILE,
    PROBE,
    PROCESS,
    REGIONS_AT,
    LeaseFile,
    ensure_lease_file,
    lease_file_problems,
)
from dspy_registry.registry_store.lease_replacing import compact_lease_file
from tests.support.forks import await_all, fork
from tests.support.limit_process import all_free, call


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    return Leases(tmp_path)


def test_many_limits_in_one_file(leases: Leases, tmp_path: Path) -> None:
    keys = [f"module:acme.M{number}" for number in range(300)]
    with call(leases, 2, key=keys[0]):
        for key in keys[1:]:
            with call(leases, 100, key=key):
                pass
        with call(Leases(tmp_path), 2, key=keys[0]), pytest.raises(LimitReachedError):
            call(leases, 2, key=keys[0]).__enter__()
    assert lease_file_problems(tmp_path) == []
    assert [region.key for region in LeaseFile(tmp_path).regions() if region.key != PROCESS] == keys


def test_a_file_is_replaced_only_when_nobody_holds_anything(leases: Leases, tmp_path: Path) -> None:
    other = Leases(tmp_path)
    with call(leases):
        assert not compact_lease_file(tmp_path)
    with call(other):
        pass
    assert compact_lease_file(tmp_path)
    assert LeaseFile(tmp_path).end == REGIONS_AT
    with call(leases), pytest.raises(LimitReachedError):
        call(other).__enter__()


def test_a_killed_replacement_is_finished_by_the_next(leases: Leases, tmp_path: Path) -> None:
    with call(leases):
        pass
    LeaseFile(tmp_path).retire()  # killed before the new file was in place
    with call(leases), pytest.raises(LimitReachedError):
        call(Leases(tmp_path)).__enter__()


def test_it_is_for_user_and_group(tmp_path: Path) -> None:
    previous = os.umask(0o007)
    try:
        assert ensure_lease_file(tmp_path).stat().st_mode & 0o777 == 0o660
    finally:
        os.umask(previous)


@pytest.mark.parametrize(
    ("at", "written"),
    [(0, b"another "), (64, b"\xff" * 8), (64, bytes(8)), (REGIONS_AT, b"\x01"), (REGIONS_AT + 4, b"\xff" * 4)],
)
def test_damage_is_found(leases: Leases, tmp_path: Path, at: int, written: bytes) -> None:
    with call(leases):
        pass
    with (tmp_path / LEASES_FILE).open("r+b") as file:
        file.seek(at)
        file.write(written)
    assert len(lease_file_problems(tmp_path)) == 1
    with pytest.raises(StoreError, match="damaged"):
        call(Leases(tmp_path), key="module:another").__enter__()


# Probes


def test_one_process_probes_at_a_time(leases: Leases, tmp_path: Path) -> None:
    other = Leases(tmp_path)
    probe = claim_probe(leases, "acme.Qa", 3, 60.0)
    assert probe is not None
    assert claim_probe(other, "acme.Qa", 3, 60.0) is None
    assert claim_probe(other, "acme.Qa", 4, 60.0) is not None
    probe.end()
    probe.end()
    assert claim_probe(other, "acme.Qa", 3, 60.0) is not None
    assert all_free(tmp_path)


def test_nobody_probes_after_a_failure_until_the_daemon_has_heard_of_it(
    leases: Leases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Leases(tmp_path)
    monkeypatch.setattr(probes, "SETTLES", 600.0)
    failed = claim_probe(leases, "acme.Qa", 3, 60.0)
    assert failed is not None
    failed.end(ok=False)
    failed.end()  # what a second call says does not count
    assert claim_probe(other, "acme.Qa", 3, 60.0) is None
    monkeypatch.setattr(probes, "SETTLES", 0.0)
    failed = claim_probe(leases, "acme.Qa", 4, 60.0)
    assert failed is not None
    failed.end(ok=False)
    assert claim_probe(other, "acme.Qa", 4, 60.0) is not None


def test_one_process_probes_at_a_time_while_another_is_stopped_that_claims(leases: Leases, tmp_path: Path) -> None:
    region = leases.region(f"{PROBE}acme.Qa@3", 1)
    stopped = Hold(LeaseFile(tmp_path))
    assert stopped.take(region.starts[0])
    probe = claim_probe(leases, "acme.Qa", 3, 60.0)
    assert probe is not None
    assert claim_probe(Leases(tmp_path), "acme.Qa", 3, 60.0) is None
    probe.end()
    assert claim_probe(Leases(tmp_path), "acme.Qa", 3, 60.0) is not None
    stopped.give_back()


def test_anyone_probes_after_the_deadline(leases: Leases, tmp_path: Path) -> None:
    late = claim_probe(leases, "acme.Qa", 3, 0.0)
    second = claim_probe(Leases(tmp_path), "acme.Qa", 3, 60.0)
    assert late is not None
    assert second is not None
    late.end()  # not what the second one has
    assert claim_probe(leases, "acme.Qa", 3, 60.0) is None


def test_a_dead_process_probes_no_more(leases: Leases, tmp_path: Path) -> None:
    await_all(fork(lambda: claim_probe(leases, "acme.Qa", 3, 60.0)))
    assert claim_probe(leases, "acme.Qa", 3, 60.0) is not None
