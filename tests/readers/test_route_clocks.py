"""Which clock says that a kept route has ended."""

import time
from pathlib import Path

import pytest

from dspy_registry import Registry, RegistryWriter
from dspy_registry.readers import deciding
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.circuit import CircuitRow
from dspy_registry.registry_store.health_file import ensure_health_file

SECONDS = 0.2


def publish(folder: Path, *until: float) -> None:
    """As a daemon: circuits of one module with these deadlines."""
    now = boot_seconds()
    rows = [CircuitRow("dspy.ChainOfThought", 1, now, each, 1, 1, 5, "error") for each in until]
    ensure_health_file(folder).publish(rows)


def suspend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock stands still, as while a host is suspended; the boot-time clock goes on."""
    now = time.monotonic()
    monkeypatch.setattr(deciding, "_awake_seconds", lambda: now)


def test_a_circuits_deadline_passes_while_the_host_is_suspended(
    registry_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RegistryWriter(registry_folder):
        pass
    publish(registry_folder, boot_seconds() + SECONDS)
    with Registry(registry_folder) as registry:
        suspend(monkeypatch)
        first = registry.route("reasoning")
        assert not any(each.is_probe for each in first.alternatives)
        time.sleep(SECONDS)
        assert any(each.is_probe for each in registry.route("reasoning").alternatives)


def test_a_route_without_deadlines_is_kept_by_the_monotonic_clock(
    registry_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RegistryWriter(registry_folder):
        pass
    publish(registry_folder)
    with Registry(registry_folder) as registry:
        suspend(monkeypatch)
        first = registry.route("reasoning")
        ends = registry._decisions.awake_ends
        assert time.monotonic() < ends <= time.monotonic() + 60
        assert registry.route("reasoning") is first
        monkeypatch.setattr(deciding, "_awake_seconds", lambda: ends)
        monkeypatch.setattr(registry._decisions, "ends", 0.0)
        assert registry.route("reasoning") is not first
