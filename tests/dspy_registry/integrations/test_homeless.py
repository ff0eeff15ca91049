"""A user without a home directory and without an entry in the password file: programs run, and are told once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dspy_registry import InvalidArgumentError, Registry, UsageReporter
from dspy_registry.registry_store.paths import registry_path
from tests.support.command import daemon
from tests.support.processes import run, say

pytestmark = [
    pytest.mark.dspy,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that is not listed"),
]
NOBODY_LISTED = 54399


def play(path: str | None) -> None:
    """Run a program as that user; says its answer, what was warned of, and what naming the folder raised."""
    import logging

    import dspy

    from dspy_registry.integrations.dspy import RegistryCallback
    from tests.support.dspy_program import PricedLM

    warned: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warned.append(record.getMessage())

    logging.getLogger("dspy_registry").addHandler(Keep(logging.WARNING))
    for name in ("HOME", "XDG_DATA_HOME", "DSPY_REGISTRY"):
        os.environ.pop(name, None)
    os.setgroups([])
    os.setgid(NOBODY_LISTED)
    os.setuid(NOBODY_LISTED)
    callback = RegistryCallback(path)
    with dspy.context(lm=PricedLM(), callbacks=[callback]):
        answers = [dspy.Predict("question -> answer")(question="x").answer for _ in range(2)]
    callback.reporter.record("acme.Other", 1.0)
    delivered = callback.reporter.flush(1.0)
    reporter = UsageReporter()
    reporter.record("acme.Other", 1.0)
    reporter.close()
    try:
        registry_path()
        raised = ""
    except InvalidArgumentError as error:
        raised = str(error)
    say([answers, delivered, warned, raised, repr(callback)])


def test_a_program_runs_without_a_home_directory() -> None:
    ((answers, delivered, warned, raised, shown),) = run(__name__, "play", None)
    assert answers == ["yes", "yes"]
    assert not delivered
    assert len(warned) == 2  # one for each reporter
    assert all("DSPY_REGISTRY" in text for text in (*warned, raised))
    assert "~" in shown


def test_a_folder_that_is_named_needs_no_home_directory(seeded_registry: Path) -> None:
    for folder in (seeded_registry, *seeded_registry.parents[:2]):
        folder.chmod(0o755)
    with daemon(seeded_registry):
        (_, delivered, warned, *_), *_ = run(__name__, "play", seeded_registry)
        assert not delivered  # that user has no right to report
    assert [("--report-group" in text, "DSPY_REGISTRY" in text) for text in warned] == [(True, False), (False, True)]
    with Registry(seeded_registry) as registry:
        assert registry.usages() == []
