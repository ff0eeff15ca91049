"""Clients on the hosts of a cluster, which note what they asked for and were told; and watchers of what hosts show."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dspy_registry import ConflictError, Policy, Registry, RegistryError, WriterClient, errors
from tests.stress.cluster_truth import DONE, REFUSED, UNKNOWN, Told
from tests.support.daemon_process import module

SHARED = ("stress.One", "stress.Two", "stress.Three", "stress.Four")
_REFUSALS = (ConflictError, errors.BusyError, errors.ClusterFullError, errors.ClusterMembershipError)
_BATCH = 110  # more than one transaction holds
_values = itertools.count(1)


class Client(threading.Thread):
    """One client, until it is told to stop. Each registration has a value of its own."""

    def __init__(self, folder: Path, number: int, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self._folder, self._own, self._chance = folder, f"stress.Count{number}", chance
        self._count = 0
        self._is_over = threading.Event()
        self.told: list[Told] = []
        self.problems: list[str] = []

    def end(self) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        try:
            with WriterClient(self._folder, timeout=15) as client:
                while not self._is_over.is_set():
                    self._one(client)
        except Exception as error:
            self.problems.append(f"a client of {self._folder.name} ended with {error!r}")

    def _one(self, client: WriterClient) -> None:
        kind = self._chance.random()
        if kind < 0.5:
            self._count_up(client)
        elif kind < 0.75:
            self._register(client, self._chance.choice(SHARED), None)
        elif kind < 0.79:
            self._batch(client)
        else:
            with suppress(RegistryError):
                self._other(client)

    def _count_up(self, client: WriterClient) -> None:
        """Its own module, which nobody else changes. Where it does not know what came of a call, the next one tells."""
        outcome, conflict = self._register(client, self._own, self._count)
        self._count = self._count + 1 if outcome == DONE else max(self._count, conflict)

    def _register(self, client: WriterClient, name: str, expected: int | None) -> tuple[str, int]:
        value = next(_values)
        return self._note(
            [(name, value)],
            expected,
            lambda: client.register_module(module(name, estimated_duration=value), expected_version=expected),
        )

    def _batch(self, client: WriterClient) -> None:
        values = {f"stress.Batch{number}": next(_values) for number in range(_BATCH)}
        infos = [module(name, estimated_duration=value) for name, value in values.items()]
        self._note(list(values.items()), None, lambda: client.register_modules(infos))

    def _note(self, values: list[tuple[str, int]], expected: int | None, call: Callable[[], object]) -> tuple[str, int]:
        """The outcome, and the version that a conflict names."""
        began, outcome, conflict = time.monotonic(), DONE, 0
        try:
            call()
        except _REFUSALS as error:
            outcome = REFUSED
            conflict = getattr(error, "current_version", 0)
        except RegistryError:
            outcome = UNKNOWN
        ended = time.monotonic()
        self.told += [Told(name, value, expected, outcome, began, ended) for name, value in values]
        return outcome, conflict

    def _other(self, client: WriterClient) -> None:
        name, kind = self._chance.choice(SHARED), self._chance.randrange(6)
        if kind == 0:
            client.unregister_module(name)
        elif kind == 1:
            client.set_alias(f"alias{self._chance.randrange(3)}", name)
        elif kind == 2:
            client.remove_alias(f"alias{self._chance.randrange(3)}")
        elif kind == 3:
            client.set_policy("stress.*", Policy(max_concurrency=self._chance.randint(1, 9)))
        else:
            self._label(client, name)

    def _label(self, client: WriterClient, name: str) -> None:
        with Registry(self._folder) as registry:
            version = registry.describe(name).provenance.version
        wanted = self._chance.choice((version, max(1, version - 1)))
        if self._chance.random() < 0.2:
            client.remove_label(name, "live")
        else:
            client.set_label(name, "live", wanted)


class Watcher(threading.Thread):
    """Looks again and again at what readers of a host see: version and global revision of each name."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._is_over = threading.Event()
        self.seen: list[dict[str, tuple[int, int]]] = []
        self.problems: list[str] = []

    def end(self) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        try:
            with Registry(self._folder) as registry:
                while not self._is_over.wait(0.005):
                    self._look(registry)
        except Exception as error:
            self.problems.append(f"a reader of {self._folder.name} ended with {error!r}")

    def _look(self, registry: Registry) -> None:
        look = {}
        with registry.snapshot() as snapshot:
            for name in snapshot:
                if name.startswith("stress.") and not name.startswith("stress.Batch"):
                    kept = snapshot.describe(name).provenance
                    look[name] = kept.version, kept.global_revision
        if not self.seen or self.seen[-1] != look:
            self.seen.append(look)
