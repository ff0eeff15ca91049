"""The roles read, report and change, of real users in real groups."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import Registry, RegistryError, UsageReporter, WriterClient
from dspy_registry.writer.daemon.roles import NEEDED, Groups
from dspy_registry.writer.discovery.report import DiscoveryReport
from tests.support.daemon_process import PATIENT, daemon_of, module, serve
from tests.support.processes import run, say

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
STRANGER, CHANGERS, REPORTERS = 54321, 54322, 54323


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A registry's folder that every user can reach."""
    parent = Path(tempfile.mkdtemp())
    parent.chmod(0o755)
    yield parent / "registry"
    shutil.rmtree(parent)


def serve_groups(path: str, change: int | None, report: int | None) -> None:
    serve(path, group=change, report_group=report)


def attempt(call: Any, *arguments: Any) -> str:
    try:
        call(*arguments)
    except RegistryError as error:
        return type(error).__name__
    return "done"


def act_as(path: str, groups: list[int]) -> None:
    """Report and change as a user with these groups; says what became of each, and what was warned of."""
    warned: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warned.append(record.getMessage())

    logging.getLogger("dspy_registry").addHandler(Keep(logging.WARNING))
    reporter = UsageReporter(path, interval=3600)
    os.setgroups(groups)
    os.setgid(STRANGER)
    os.setuid(STRANGER)
    with WriterClient(path, timeout=PATIENT) as client:
        done = {
            "status": attempt(client.status),
            "register": attempt(client.register_module, module("acme.m")),
            "batch": attempt(client.register_modules, [module(f"acme.m{at}") for at in range(300)]),
            "unregister": attempt(client.unregister_module, "dspy.Predict"),
            "alias": attempt(client.set_alias, "short", "dspy.ReAct"),
            "discovery": attempt(client.apply_discovery, DiscoveryReport()),
        }
    for _ in range(3):
        reporter.record("dspy.ReAct", 1.0)
        done["report"] = str(reporter.flush(PATIENT))
    say([done, warned])


CHANGES = ("register", "batch", "unregister", "alias", "discovery")
MAY_CHANGE = {**dict.fromkeys(("status", *CHANGES), "done"), "report": "True"}
MAY_REPORT = {**dict.fromkeys(CHANGES, "StorePermissionError"), "status": "done", "report": "True"}
MAY_READ = {**dict.fromkeys(("status", *CHANGES), "StorePermissionError"), "report": "False"}


@needs_root
@pytest.mark.parametrize(
    ("change", "report", "groups", "expected"),
    [
        (None, REPORTERS, [1, REPORTERS], MAY_REPORT),
        (CHANGERS, REPORTERS, [1, REPORTERS], MAY_REPORT),
        (CHANGERS, REPORTERS, [CHANGERS, REPORTERS], MAY_CHANGE),
        (CHANGERS, None, [CHANGERS], MAY_CHANGE),
        (CHANGERS, REPORTERS, [1], MAY_READ),
        (None, None, [REPORTERS], MAY_READ),
    ],
)
def test_a_role_may_what_the_table_says(
    open_folder: Path, change: int | None, report: int | None, groups: list[int], expected: dict[str, str]
) -> None:
    with daemon_of(__name__, "serve_groups", open_folder, change, report):
        ((done, warned),) = run(__name__, "act_as", open_folder, groups)
        assert done == expected
        assert len(warned) == (expected is MAY_READ)  # once, though it reported three times
        assert all("--report-group" in text for text in warned)
    with Registry(open_folder) as registry:
        assert registry.usage("dspy.ReAct").calls == (0 if expected is MAY_READ else 3)
        assert ("dspy.Predict" in registry) == (expected is not MAY_CHANGE)


@needs_root
def test_the_kernel_s_word_decides_also_where_the_files_are_open_to_all(open_folder: Path) -> None:
    with daemon_of(__name__, "serve_groups", open_folder, CHANGERS, REPORTERS):
        open_folder.chmod(0o755)
        (open_folder / "writer.sock").chmod(0o777)
        assert run(__name__, "act_as", open_folder, [1])[0][0] == MAY_READ
        assert run(__name__, "act_as", open_folder, [REPORTERS])[0][0] == MAY_REPORT
        assert run(__name__, "act_as", open_folder, [CHANGERS])[0][0] == MAY_CHANGE


@needs_root
def test_what_a_daemon_creates_is_open_to_the_wider_group_alone(open_folder: Path) -> None:
    with daemon_of(__name__, "serve_groups", open_folder, CHANGERS, REPORTERS):
        for name in ("", "data.mdb", "lock.mdb", "writer.lock", "writer.sock"):
            path = open_folder / name
            status = path.stat()
            assert status.st_gid == REPORTERS, path
            assert status.st_mode & 0o007 == 0, path
        assert (open_folder / "writer.sock").stat().st_mode & 0o777 == 0o660


def test_a_message_that_the_table_does_not_name_needs_the_right_to_change() -> None:
    assert {kind.__name__ for kind in NEEDED} == {"ReportUsage", "ReportOutcomes", "ReadStatus"}
    assert Groups(change=1).of_files == 1
    assert Groups(change=1, report=2).of_files == 2
    assert Groups().of_files is None
