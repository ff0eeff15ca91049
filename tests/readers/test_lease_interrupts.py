"""An interrupt between any two lines of limits leaks nothing."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from dspy_registry.readers.leases import Leases
from dspy_registry.readers.limits import LimitedCall, all_holders
from dspy_registry.readers.limits_async import AsyncLimitedCall
from dspy_registry.readers.probes import claim_probe
from dspy_registry.registry_store.errors import LimitReachedError
from dspy_registry.registry_store.lease_file import (
    LEASES_FILE,
)
from dspy_registry.registry_store.policy import Limit
from tests.support.limit_process import NEURAL, QA, all_free, call, keep_nothing
from tests.support.processes import run


def interrupt_at_every_line(folder: str) -> None:
    """Raises KeyboardInterrupt at each line of ours in turn, of a first call in a new folder and of a later one."""
    from tests.support.interrupts import interrupted_everywhere
    from tests.support.processes import say

    kept = Leases(Path(folder))
    empty = Path(folder) / "empty"
    empty.mkdir()

    def later() -> None:
        with call(kept, 2, 0.0):
            pass

    def first() -> None:
        (empty / LEASES_FILE).unlink(missing_ok=True)
        with LimitedCall(Leases(empty), (Limit(QA, 20), Limit(NEURAL, 3)), 0.0):
            pass

    def refused() -> None:
        with pytest.raises(LimitReachedError), call(kept, 1, 0.001, key="pool:full"):
            pass

    def probing() -> None:
        probe = claim_probe(kept, "acme.Qa", 1, 0.0)
        if probe is not None:
            probe.end()

    def in_a_task() -> None:
        async def scene() -> None:
            async with AsyncLimitedCall(call(kept, 2, 0.0)):
                pass

        asyncio.run(scene())

    def is_free() -> bool:
        return all(all_free(path) for path in (kept.folder, empty) if (path / LEASES_FILE).exists())

    later()
    for work in (later, first, probing):
        say([work.__name__, interrupted_everywhere(work, is_free)])
    # asyncio keeps an interrupt, and with it all frames, in a cycle.
    say(["in_a_task", interrupted_everywhere(in_a_task, lambda: gc.collect() >= 0 and is_free())])
    with call(Leases(Path(folder)), 1, 0.0, key="pool:full"):
        say(["refused", interrupted_everywhere(refused, lambda: len(all_holders(kept)) == 1)])


def interrupt_two_in_turn(folder: str, keeps: bool) -> None:
    """As above, while two processes need the one cell in turn, which the other one keeps, or nobody does."""
    from tests.support.interrupts import interrupted_everywhere
    from tests.support.processes import say

    if not keeps:
        keep_nothing()
    both = Leases(Path(folder)), Leases(Path(folder))

    def in_turn() -> None:
        for leases in both:
            with call(leases):
                pass

    in_turn()
    say(interrupted_everywhere(in_turn, lambda: all_free(Path(folder))))


@pytest.mark.parametrize("keeps", [True, False])
def test_an_interrupt_of_two_in_turn_leaks_nothing(tmp_path: Path, keeps: bool) -> None:
    (lines,) = run("tests.readers.test_lease_interrupts", "interrupt_two_in_turn", tmp_path, keeps)
    assert lines > 100


def test_an_interrupt_at_any_line_leaks_nothing(tmp_path: Path) -> None:
    said = dict(run("tests.readers.test_lease_interrupts", "interrupt_at_every_line", tmp_path))
    assert set(said) == {"later", "first", "probing", "in_a_task", "refused"}
    assert min(said.values()) > 20
