"""An interrupt between any two lines of a routed call leaks no place under a limit."""

from __future__ import annotations

import gc
from pathlib import Path

from tests.support.processes import run

ROOMS = ("dspy_registry/router", "dspy_registry/registry_store", "readers")


def interrupt_at_every_line(folder: str) -> None:
    """Raises KeyboardInterrupt at each line of ours in turn, in the thread that asks for a routed call."""
    from dspy_registry import ModuleInfo, Policy, Registry, RegistryWriter, Router
    from tests.support.interrupts import interrupted_everywhere
    from tests.support.processes import say
    from tests.support.reporting import NotingReporter
    from tests.support.usage_helpers import wait_until

    with RegistryWriter(Path(folder)) as writer:
        writer.register_module(ModuleInfo("acme.Qa", estimated_duration=60_000, pool_type="neural"))
        writer.set_policy("acme.Qa", Policy(max_concurrency=1))
        writer.set_policy("pool:neural", Policy(max_concurrency=2))
    gc.disable()  # what is given back must not wait for it
    registry, reporter = Registry(folder), NotingReporter(Path(folder))
    router = Router(registry, {"acme.Qa": lambda: "answered"}, reporter, rounds=1)
    router.call()

    def is_free() -> bool:
        wait_until(lambda: not registry.limited_calls() and not router.abandoned, "the end of what had begun")
        return router.call().value == "answered"

    say(interrupted_everywhere(router.call, is_free, ROOMS))


def test_an_interrupt_at_any_line_of_a_routed_call_leaks_nothing(tmp_path: Path) -> None:
    (lines,) = run("tests.dspy_registry.router.test_router_interrupts", "interrupt_at_every_line", tmp_path)
    assert lines > 100
