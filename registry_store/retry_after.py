"""How long a provider asked to wait before the next call, read from its exception."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from dspy_registry.registry_store.number_text import number

_DEEPEST: Final = 16
_HOLDERS: Final = ("headers", "litellm_response_headers")
_SECONDS: Final = {"retry-after-ms": 0.001, "retry-after": 1.0}
"""For each header, the length of its unit in seconds. The more exact header comes first."""


def retry_after_of(error: BaseException, now: float) -> float | None:
    """Seconds to wait, at least 0; None: the exception does not say. `now` is Unix time, for dates. Never raises."""
    try:
        waits = (wait for each in _causes(error) for wait in _told(each, now))
        return next((wait for wait in waits if wait is not None), None)
    except Exception:  # an exception holds the program's own objects, and any operation on them may raise
        return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and its causes, which may be circular."""
    each: BaseException | None = error
    for _ in range(_DEEPEST):
        if each is None:
            return
        yield each
        each = each.__cause__


def _told(error: BaseException, now: float) -> Iterator[float | None]:
    yield _seconds(getattr(error, "retry_after", None), 1.0, now)
    for holder in (error, getattr(error, "response", None)):
        for name in _HOLDERS:
            headers = _lower(getattr(holder, name, None))
            for header, unit in _SECONDS.items():
                yield _seconds(headers.get(header), unit, now)


def _lower(headers: Any) -> dict[str, Any]:
    items = headers.items() if hasattr(headers, "items") else ()
    return {str(name).lower(): value for name, value in items}


def _seconds(value: Any, unit: float, now: float) -> float | None:
    """Seconds from a number, a number as text, or an HTTP date; None: it is none of them."""
    if value is None or isinstance(value, bool):
        return None
    try:
        seconds = number(value.strip()) if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        seconds = None
    if seconds is None:
        return _until(value, now)
    return max(0.0, seconds * unit) if math.isfinite(seconds * unit) else None


def _until(value: Any, now: float) -> float | None:
    from email.utils import parsedate_to_datetime  # loads much, and dates are rare

    try:
        return max(0.0, parsedate_to_datetime(str(value)).timestamp() - now)
    except (ValueError, OverflowError):
        return None
