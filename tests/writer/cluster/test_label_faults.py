"""Labels and their versions while daemons are killed, a host is cut off and revisions are compacted."""

from __future__ import annotations

import random
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ConflictError, LabelConflictError, Registry, WriterClient, errors
from tests.conftest import violations
from tests.support.daemon_process import Served, daemon_of, module
from tests.support.etcd import etcd, host, in_step, needs_etcd, patient, section
from tests.support.lossy_proxy import lossy

pytestmark = needs_etcd
NAMES = ("acme.One", "acme.Two")


class Labeller(threading.Thread):
    """A client that registers versions, moves labels to them by what they name, and now and then unregisters."""

    def __init__(self, path: Path, seed: int, steps: int) -> None:
        super().__init__(daemon=True)
        self.path, self.steps = path, steps
        self.chance = random.Random(seed)
        self.failures: list[str] = []

    def run(self) -> None:
        try:
            with WriterClient(self.path, timeout=60) as client, Registry(self.path) as registry:
                for _ in range(self.steps):
                    with suppress(ConflictError, LabelConflictError, errors.ClusterUnavailableError, errors.BusyError):
                        self.step(client, registry)
        except Exception as error:
            self.failures.append(repr(error))

    def step(self, client: WriterClient, registry: Registry) -> None:
        name, chance = self.chance.choice(NAMES), self.chance
        try:
            version = registry.describe(name).provenance.version
            before = registry.labels(name).get("live")
            if chance.random() < 0.05:
                client.unregister_module(name)
            elif chance.random() < 0.4:
                chosen = dict.fromkeys((version, max(1, version - chance.randrange(17))), 1.0)
                client.set_label(name, "live", chosen, expected=dict(before.versions) if before else 0)
            elif before and chance.random() < 0.2:
                client.remove_label(name, "live")
            else:
                client.register_module(module(name, metadata={"n": chance.random()}), expected_version=version)
        except (errors.UnknownModuleError, errors.UnknownVersionError, errors.UnknownLabelError):
            client.register_module(module(name, metadata={"n": chance.random()}))


def seen(served: Served) -> dict[str, Any]:
    """Versions, labels, and the records that labels name, as readers of a host have them."""
    with Registry(served.path) as registry, registry.snapshot() as snapshot:
        return {
            name: (
                snapshot.describe(name).provenance.version,
                {label: found.runs for label, found in snapshot.labels(name).items()},
                {
                    version: snapshot.get_module(f"{name}@{version}").metadata
                    for found in snapshot.labels(name).values()
                    for version in found.versions
                },
            )
            for name in NAMES
            if name in snapshot
        }


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(4))
def test_labels_under_kills_cuts_and_compactions(tmp_path: Path, seed: int) -> None:
    rounds(tmp_path, seed)


@pytest.mark.full
def test_labels_while_a_daemon_is_killed_and_revisions_are_compacted(tmp_path: Path) -> None:
    rounds(tmp_path, 1, steps=25, faults=3)


def rounds(folder: Path, seed: int, steps: int = 60, faults: int = 8) -> None:
    chance = random.Random(seed)
    with etcd(folder / "etcd") as cluster, lossy(cluster.urls[0]) as proxy, ExitStack() as stack:
        folders = [folder / name for name in ("a", "b", "c")]

        def start(number: int) -> Served:
            through = [proxy.url] if number == 2 else cluster.urls
            served: Served = stack.enter_context(
                daemon_of("tests.support.etcd", "serve_cluster", folders[number], through)
            )
            return served

        hosts = [start(number) for number in range(3)]
        labellers = [Labeller(path, seed * 10 + number, steps) for number, path in enumerate(folders)]
        for labeller in labellers:
            labeller.start()
        for _ in range(faults):
            fault, number = chance.choice(("kill", "kill", "away", "cut", "compact")), chance.randrange(3)
            threading.Event().wait(chance.random())
            if fault in ("kill", "away"):
                hosts[number].kill()
                if fault == "away":  # for longer than the compaction
                    threading.Event().wait(1.5)
                    cluster.compact()
                hosts[number] = start(number)
            elif fault == "cut":
                proxy.cut()
                threading.Event().wait(1.0)
                proxy.mend()
                proxy.lose[b"success"] = 1
            else:
                cluster.compact()
            for path in folders:
                assert violations(path) == []
        for labeller in labellers:
            labeller.join()
            assert labeller.failures == []
        proxy.lose.clear()
        patient(lambda: all(section(served)["error"] == "" for served in hosts))
        newest = max(hosts, key=lambda served: int(section(served)["changes"]))
        in_step(newest, *hosts)
        with host(folder / "late", cluster) as late:
            in_step(newest, late)
            found = [seen(served) for served in (*hosts, late)]
            assert all(one == found[0] for one in found)
            for served in (*hosts, late):
                assert violations(served.path) == []
