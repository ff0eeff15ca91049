"""Barriers in all processes: there, forbidden, and in a forked child."""

from __future__ import annotations

import errno

import pytest

from dspy_registry.registry_store import barriers
from tests.support.forks import await_all, fork
from tests.support.limit_process import MEMBARRIER
from tests.support.processes import run, say
from tests.support.system_calls import forbid

pytestmark = pytest.mark.skipif(MEMBARRIER is None, reason="the number of membarrier is known for x86-64 and arm64")


def forbidden() -> None:
    """What there is when the system call is forbidden from the start."""
    assert MEMBARRIER is not None
    forbid(MEMBARRIER, errno.EPERM)
    barriers.everywhere_surely()  # it waits
    say([barriers.register(), barriers.everywhere()])


def test_without_the_system_call_there_is_no_barrier() -> None:
    assert run(__name__, "forbidden") == [[False, False]]


@pytest.mark.skipif(not barriers.register(), reason="membarrier is forbidden here")
def test_a_process_registers_and_so_does_its_child() -> None:
    def registers() -> None:
        assert barriers.register()
        assert barriers.everywhere()

    registers()
    await_all(fork(registers))
