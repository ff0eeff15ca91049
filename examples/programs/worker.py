"""A worker of the example: it answers with the program that the label names for each user."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from multiprocessing.synchronize import Barrier

import dspy
from acme_qa import LIVE_LABEL, NAME, model

from dspy_registry import Programs, Registry, Router


def work(path: str, number: int, has_answered: Barrier) -> None:
    """A worker: it answers one user after the other, until the label names the second version for all of them."""
    dspy.configure(lm=model())
    live = f"{NAME}@{LIVE_LABEL}"
    registry = Registry(path, wait=10)
    router = Router(registry, Programs(registry, allow=("acme_qa",), names=(live,)))
    answered: Counter[int] = Counter()
    for user in itertools.count():
        result = router.call(names=live, key=f"user-{user}", arguments={"question": "What is it?"})
        answered[result.version] += 1
        if answered[result.version] == 1:
            print(f"worker {number}: version {result.version} answers {result.value.answer!r}", flush=True)
        if user == 0:
            has_answered.wait()
        if result.version == 2 and set(registry.labels(NAME)[LIVE_LABEL].versions) == {2}:
            break
        time.sleep(0.01)
    calls = " and ".join(f"{count} of version {version}" for version, count in sorted(answered.items()))
    print(f"worker {number}: {calls}", flush=True)
