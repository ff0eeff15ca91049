"""The kinds of outcome that a call may have, and what each counts as."""

from __future__ import annotations

from typing import Final

from dspy_registry.registry_store.errors import InvalidArgumentError

OK: Final = "ok"
TIMEOUT: Final = "timeout"
RATE_LIMITED: Final = "rate_limited"
UNAVAILABLE: Final = "unavailable"
ERROR: Final = "error"
INVALID_OUTPUT: Final = "invalid_output"
CALLER: Final = "caller"
CANCELLED: Final = "cancelled"

KINDS: Final = (OK, TIMEOUT, RATE_LIMITED, UNAVAILABLE, ERROR, INVALID_OUTPUT, CALLER, CANCELLED)
"""Every kind, in the order in which counts are stored: more may be appended, none moved.

ok              the call completed
timeout         its caller ended it at a limit, or the provider said 408
rate_limited    the provider asked to come back later (429)
unavailable     the provider did not answer, or not for us (5xx, 401 to 404, no connection): another may serve
error           anything else that was raised
invalid_output  it was answered, but the answer could not be parsed: an error of the module, not of its provider
caller          the request was at fault (other 4xx), or the caller's patience was too short for this module
cancelled       nobody waited for it any more: neither a duration nor an error
"""
UNHEALTHY: Final = frozenset((TIMEOUT, RATE_LIMITED, UNAVAILABLE, ERROR))
"""What speaks against a provider's health."""
FAILED: Final = UNHEALTHY | {INVALID_OUTPUT}
"""What counts as a failure of the module."""
UNJUDGED: Final = frozenset((CALLER, CANCELLED))
"""What counts neither as a success nor as a failure."""


def checked_kind(kind: str) -> str:
    """The kind itself. Raises InvalidArgumentError, listing all, for any other word."""
    if kind not in KINDS:
        raise InvalidArgumentError(f"outcome {kind!r} is not one of {', '.join(KINDS)}.")
    return kind
