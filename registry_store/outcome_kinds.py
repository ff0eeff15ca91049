"""The kinds of outcome that a call may have, and what each counts as."""

from __future__ import annotations

from typing import Final

OK: Final = "ok"
TIMEOUT: Final = "timeout"
RATE_LIMITED: Final = "rate_limited"
UNAVAILABLE: Final = "unavailable"
ERROR: Final = "error"
INVALID_OUTPUT: Final = "invalid_output"
CALLER: Final = "caller"
CANCELLED: Final = "cancelled"

KINDS: Final = (OK, TIMEOUT, RATE_LIMITED, UNAVAILABLE, ERROR, INVALID_OUTPUT, CALLER, CANCELLED)
"""Every kind, in the order in which counts are stored. New kinds may only be appended.

ok              the call completed
timeout         its caller ended it at a limit, or the provider answered 408
rate_limited    the provider asked to come back later (429)
unavailable     no connection, or the provider could not or would not serve us (5xx, 401 to 404): another one may
error           any other exception
invalid_output  the answer could not be parsed: an error of the module, not of its provider
caller          the request was wrong (other 4xx), or the caller's limit was too short for this module
cancelled       nobody waited for it any more: it gives no duration, and is no error
"""
UNHEALTHY: Final = frozenset((TIMEOUT, RATE_LIMITED, UNAVAILABLE, ERROR))
"""Kinds that count against a provider's health."""
FAILED: Final = UNHEALTHY | {INVALID_OUTPUT}
"""Kinds that count as a failure of the module."""
UNJUDGED: Final = frozenset((CALLER, CANCELLED))
"""Kinds that count neither as a success nor as a failure."""
