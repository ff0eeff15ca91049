"""Versions and labels as plain Python has them: what a registry must agree with."""

from __future__ import annotations

from dataclasses import dataclass, field

from dspy_registry.registry_store.buckets import BUCKETS, bucket_in, hash_of

WINDOW = 16


@dataclass
class ModelOfModule:
    """One name: the durations of all versions it ever had, whether it is registered, and the table of each label."""

    durations: list[int] = field(default_factory=list)
    is_registered: bool = False
    labels: dict[str, list[int]] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)

    @property
    def newest(self) -> int:
        return len(self.durations)

    def register(self, duration: int) -> None:
        if self.is_registered and self.durations[-1] == duration:
            return
        self.durations.append(duration)
        self.is_registered = True

    def unregister(self) -> None:
        self.is_registered = False
        self.labels = {}

    def settle(self) -> None:
        """After a commit: which versions are kept."""
        last_past = self.newest - self.is_registered
        window = set(range(max(1, last_past - WINDOW + 1), self.newest + 1))
        labelled = {version for table in self.labels.values() for version in table}
        self.kept = window | (labelled & self.kept)

    def chosen(self, name: str, label: str, key: str) -> int:
        return self.labels[label][bucket_in(hash_of(name, label), key)]

    def heaviest(self, label: str) -> int:
        table = self.labels[label]
        return max(set(table), key=lambda version: (table.count(version), version))


def table_of(runs: tuple[tuple[int, int], ...]) -> list[int]:
    """The version of each bucket."""
    table = [version for version, length in runs for _ in range(length)]
    assert len(table) == BUCKETS
    return table
