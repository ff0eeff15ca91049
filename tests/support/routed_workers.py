"""Workers that call through a router, and the provider that they call: a file says how it answers, another counts.

They go by declared durations: what takes seconds elsewhere takes no time here.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from dspy_registry import Registry, Router, UsageReporter
from tests.support.processes import requests, say

OK, ERROR, HANG, LIMITED = "ok", "error", "hang", "limited"
HANGS = 4.0  # seconds, far above the limit of 1.8


class RateLimitError(Exception):
    """As providers raise it."""

    status_code = 429
    retry_after = 3600.0


class Provider:
    """It may fail for all processes at once. `count` is how many calls have reached it since it changed."""

    def __init__(self, folder: Path) -> None:
        self._mode = folder / "mode"
        self._calls = folder / "calls"

    def become(self, mode: str) -> None:
        self._calls.write_bytes(b"")
        self._mode.write_text(mode)

    @property
    def count(self) -> int:
        return self._calls.stat().st_size

    def __call__(self, question: str = "") -> str:
        with self._calls.open("ab", buffering=0) as file:
            file.write(b".")
        mode = self._mode.read_text()
        if mode == ERROR:
            raise ConnectionError("the provider is down")
        if mode == LIMITED:
            raise RateLimitError("later")
        if mode == HANG:
            time.sleep(HANGS)
        return "from the provider"


def work(path: str, folder: str) -> None:
    """A worker: for each request it makes so many calls, and says (name, kinds of attempts) of each."""
    with Registry(path) as registry, UsageReporter(path, interval=0.2) as reporter:
        router = Router(
            registry, {"acme.Fast": Provider(Path(folder)), "acme.Deep": lambda question: "slowly"}, reporter
        )
        answer(lambda: router.call(arguments={"question": "why?"}, deadline_ms=30_000, basis="declared"))
        os._exit(0)  # abandoned threads hang


def work_in_dspy(path: str, folder: str) -> None:
    """The same with modules of DSPy on its dummy model, routed by `Routed`."""
    import dspy
    from dspy.utils import DummyLM

    from dspy_registry.integrations.dspy import RegistryCallback, Routed

    class Fast(dspy.Module):  # type: ignore[misc]
        def __init__(self, provider: Provider) -> None:
            super().__init__()
            self.provider = provider
            self.predict = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            self.provider(question)
            return self.predict(question=question)

    with Registry(path) as registry, UsageReporter(path, interval=0.2) as reporter:
        dspy.configure(
            lm=DummyLM({"": {"answer": "yes", "reasoning": "so"}}), callbacks=[RegistryCallback(reporter=reporter)]
        )
        targets = {"acme.Fast": Fast(Provider(Path(folder))), "acme.Deep": dspy.ChainOfThought("question -> answer")}
        for target in targets.values():  # what DSPy loads at its first call takes longer than the limit
            target(question="is all loaded?")
        routed = Routed(registry, targets, reporter=reporter, deadline_ms=30_000, basis="declared")
        answer(lambda: routed.route_and_call({"question": "why?"}))
        os._exit(0)


def answer(call: Any) -> None:
    say("ready")
    for count in requests():
        results = [call() for _ in range(count)]
        say([[result.name, [attempt.kind for attempt in result.attempts]] for result in results])
