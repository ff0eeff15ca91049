"""What is told of a routed call: its attempts, and its result."""

from __future__ import annotations

from typing import Any, NamedTuple


class Attempt(NamedTuple):
    """A call of one module version. `kind` is a kind of outcome, as in docs/statistics.md; `ok`: it completed.

    `duration_ms` is how long the attempt took, and `limit_ms` its time limit, in milliseconds. `error` is the
    exception, a TimeoutError if the attempt was ended at its limit; None: it completed.
    """

    name: str
    version: int
    kind: str
    duration_ms: float
    limit_ms: float
    error: BaseException | None


class Result(NamedTuple):
    """What the call returned, which module version returned it, and all attempts in order; the last one succeeded."""

    value: Any
    name: str
    version: int
    attempts: tuple[Attempt, ...]
