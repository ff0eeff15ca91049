"""Threads that load the first value of a type at once: what makes their decoder is not safe for threads by itself."""

from __future__ import annotations

import sys
import threading

import msgspec

from dspy_registry.registry_store.codec import SealedAlone
from tests.support.processes import run, say

THREADS = 8
ROUNDS = 300


class Leaf(msgspec.Struct, array_like=True):
    number: int
    text: str | None
    pairs: list[tuple[str, int]]


def fresh_type() -> type[msgspec.Struct]:
    """A type that nothing was decoded to, with another one in it."""
    fields = [("number", int), ("text", str), ("pairs", list[tuple[str, int]])]
    inner = msgspec.defstruct("Inner", fields, array_like=True)
    return msgspec.defstruct("Outer", [("one", inner), ("many", dict[str, inner])], array_like=True)  # type: ignore[valid-type]


def load_at_once() -> None:
    sys.setswitchinterval(1e-6)
    leaf = Leaf(1, "a", [("q", 1)])
    for _ in range(ROUNDS):
        codec, barrier, found = SealedAlone(fresh_type(), "a value"), threading.Barrier(THREADS), []
        value = codec.dump([leaf, {"x": leaf}])

        def load(codec: SealedAlone = codec, barrier: threading.Barrier = barrier, found: list[int] = found) -> None:
            barrier.wait()
            found.append(codec.load(value).one.number)  # noqa: B023 - the threads end in this round

        threads = [threading.Thread(target=load) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [1] * THREADS
    say("loaded")


def test_threads_may_load_the_first_value_of_a_type_at_once() -> None:
    assert run(__name__, "load_at_once") == ["loaded"]
