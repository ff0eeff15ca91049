"""What a repair cannot take over: rows that are gone from pages which can be read, and the place in a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_registry import Policy, RegistryWriter
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.cluster_rows import Position
from dspy_registry.writer.cluster.following import set_position
from dspy_registry.writer.repair.account import Lost
from dspy_registry.writer.repair.repair import repair
from tests.conftest import violations

PAGE = 4096
LEAF = 0x02


def drop_last_row(path: Path, key: bytes) -> int:
    """Takes the row with this key off each page where it is the last one, as if it had never been there."""
    file = path / layout.DATA_FILE
    data, dropped = bytearray(file.read_bytes()), 0
    for page in range(0, len(data), PAGE):
        lower = int.from_bytes(data[page + 12 : page + 14], "little")
        if data[page + 10] != LEAF or not 16 < lower <= PAGE:
            continue
        row = page + int.from_bytes(data[page + lower - 2 : page + lower], "little")
        if data[row + 8 : row + 8 + len(key)] == key:
            data[page + 12 : page + 14] = (lower - 2).to_bytes(2, "little")
            dropped += 1
    file.write_bytes(data)
    return dropped


@pytest.mark.parametrize("has_backup", [False, True])
@pytest.mark.parametrize("database", ["policies", "aliases"])
def test_a_row_that_is_gone_is_missed(registry_folder: Path, tmp_path: Path, database: str, has_backup: bool) -> None:
    damaged = tmp_path / "damaged"
    with RegistryWriter(damaged) as writer:
        for word in ("one", "two"):
            writer.set_policy(f"acme.{word}", Policy(max_concurrency=4))
            writer.set_alias(word, "dspy.Predict")
    backup(tmp_path / "backup", damaged)
    assert drop_last_row(damaged, {"policies": b"client\0acme.two", "aliases": b"two"}[database])
    done = repair(damaged, tmp_path / "new", backups=tmp_path / "backup" if has_backup else None)
    assert {each.where for each in done.lost} == (set() if has_backup else {database})
    assert has_backup == any(each.where.startswith(f"{database}/") for each in done.taken)
    assert violations(tmp_path / "new") == []


def test_a_host_of_a_cluster_is_told_that_it_joins_again(seeded_registry: Path, tmp_path: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.store.committer.commit(lambda draft: set_position(draft, Position("c1", "h1", revision=7)))
    done = repair(seeded_registry, tmp_path / "new")
    assert done.lost == (Lost("meta/cluster", "the daemon joins the cluster again when it starts"),)
    assert violations(tmp_path / "new") == []
