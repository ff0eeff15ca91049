"""What a service manager is told, by a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from dspy_registry.writer.daemon.service_manager import ServiceManager
from tests.support.daemon_process import PATIENT, daemon


def listener(address: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.settimeout(PATIENT)
    bound.bind(address)
    return bound


def told(bound: socket.socket) -> list[str]:
    return bound.recv(4096).decode().split("\n")


@pytest.mark.parametrize("is_abstract", [False, True])
def test_it_is_told_when_the_daemon_is_ready_alive_and_stopping(
    registry_folder: Path, tmp_path: Path, is_abstract: bool
) -> None:
    name = f"dspy-registry-test-{os.getpid()}"
    address, variable = (f"\0{name}", f"@{name}") if is_abstract else (str(tmp_path / "n"), str(tmp_path / "n"))
    with listener(address) as bound:
        with daemon(registry_folder, NOTIFY_SOCKET=variable, WATCHDOG_USEC="200000") as served:
            heard = [told(bound) for _ in range(4)]
            assert ["READY=1", f"MAINPID={served.pid}"] in heard
            assert heard.count(["WATCHDOG=1"]) >= 2
            assert served.end() == 0
        while (last := told(bound)) == ["WATCHDOG=1"]:
            pass
        assert last == ["STOPPING=1"]


def test_it_is_told_of_a_reload(tmp_path: Path) -> None:
    with listener(str(tmp_path / "n")) as bound:
        manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "n")})
        with manager.reloading():
            first, second = told(bound)
            assert first == "RELOADING=1"
            assert second.startswith("MONOTONIC_USEC=")
        assert told(bound)[0] == "READY=1"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdog_is_this_processs(environment: dict[str, str], seconds: float | None) -> None:
    assert ServiceManager(environment).watchdog_seconds == seconds


def test_a_daemon_that_is_not_well_gives_no_sign_of_life(tmp_path: Path) -> None:
    asked = []

    def is_well() -> bool:
        asked.append(True)
        return len(asked) > 2

    async def until_told(bound: socket.socket) -> None:
        manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "2000"})
        task = asyncio.create_task(manager.watch(is_well))
        assert await asyncio.to_thread(told, bound) == ["WATCHDOG=1"]
        task.cancel()

    with listener(str(tmp_path / "n")) as bound:
        asyncio.run(until_told(bound))
    assert len(asked) > 2


def test_a_manager_that_is_gone_harms_nothing(tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    manager.ready()
    manager.stopping()
    ServiceManager({}).ready()
