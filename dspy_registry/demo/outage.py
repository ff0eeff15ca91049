"""A provider that fails, hangs, is rate limited and comes back, while a router goes on answering."""

from __future__ import annotations

import time
from typing import Any, Final

from dspy_registry.demo.processes import Demo, DemoError
from dspy_registry.readers.registry import Registry
from dspy_registry.registry_store.policy import Policy
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.router.router import Router
from dspy_registry.writer.client.reporter import UsageReporter

FAST: Final = "demo.Fast"
DEEP: Final = "demo.Deep"
_LIMIT_MS: Final = 60
_OPEN_SECONDS: Final = 0.5
_CALLS_AFTER: Final = 20
_PATIENCE: Final = 30.0
_TROUBLES: Final = ("fails", "hangs", "is rate limited")


class _RateLimitError(Exception):
    status_code = 429
    retry_after = _OPEN_SECONDS


class _Provider:
    """What `demo.Fast` calls. `reached` counts the calls that came to it since it changed."""

    def __init__(self) -> None:
        self.trouble = ""
        self.reached = 0

    def become(self, trouble: str) -> None:
        self.trouble, self.reached = trouble, 0

    def __call__(self) -> str:
        self.reached += 1
        if self.trouble == "fails":
            raise ConnectionError("the provider is down")
        if self.trouble == "is rate limited":
            raise _RateLimitError
        if self.trouble == "hangs":
            time.sleep(1.0)
        return "quickly"


def go_on_without_a_provider(demo: Demo) -> None:
    """Show how few calls reach a provider in trouble, and that each request is answered."""
    demo.title("A router goes on while a provider is in trouble")
    demo.client.register_modules(
        [ModuleInfo(FAST, estimated_duration=_LIMIT_MS * 5 // 6), ModuleInfo(DEEP, estimated_duration=1_000)]
    )
    demo.client.set_policy("demo.*", Policy(open_seconds=_OPEN_SECONDS, longest_open_seconds=_OPEN_SECONDS))
    provider = _Provider()
    found: dict[str, Any] = {}
    with Registry(demo.registry) as registry, UsageReporter(demo.registry) as reporter:
        router = Router(registry, {FAST: provider, DEEP: lambda: "slowly"}, reporter)
        for trouble in _TROUBLES:
            found[trouble] = _live_through(trouble, demo, router, provider)
            _tell(demo, f"{FAST} {trouble}", found[trouble])
            if trouble == _TROUBLES[0]:
                _explain(demo, router)
            found[f"{trouble}, then is back"] = _come_back(demo, router, provider)
    demo.client.remove_policy("demo.*")
    demo.say()
    demo.facts["outage"] = found


def _live_through(trouble: str, demo: Demo, router: Router, provider: _Provider) -> dict[str, int]:
    """Call until the circuit is open, then some more."""
    provider.become(trouble)
    answered = 0
    deadline = time.monotonic() + _PATIENCE
    while not _is_open(router):
        answered += _call(router)
        if time.monotonic() > deadline:
            raise DemoError(f"the circuit of {FAST} did not open")
    answered += sum(_call(router) for _ in range(_CALLS_AFTER))
    return {"answered": answered, "reached": provider.reached}


def _come_back(demo: Demo, router: Router, provider: _Provider) -> float:
    """The provider is well again; seconds until probes have found that out."""
    provider.become("")
    began = time.monotonic()
    while router.registry.health():
        _call(router)
        time.sleep(0.01)
        if time.monotonic() > began + _PATIENCE:
            raise DemoError(f"the circuit of {FAST} did not close")
    seconds = time.monotonic() - began
    demo.say(f"  it is back: a probe finds out {seconds:.1f} s later, and all calls go there again")
    return round(seconds, 2)


def _call(router: Router) -> int:
    return len(router.call(basis="declared", deadline_ms=10_000).attempts[-1:])


def _is_open(router: Router) -> bool:
    return any(entry.name == FAST and entry.state == "open" for entry in router.registry.health())


def _tell(demo: Demo, what: str, found: dict[str, int]) -> None:
    demo.say(f"  {what}: {found['reached']} calls reach it, and all {found['answered']} requests are answered")


def _explain(demo: Demo, router: Router) -> None:
    """Four lines of the explanation: what is chosen, what that rests on, its score, and what is left out."""
    lines = router.registry.route(names=(FAST, DEEP), basis="declared").explain().splitlines()
    for line in (*lines[:2], lines[3], lines[-1]):
        demo.say(f"    {line}")
