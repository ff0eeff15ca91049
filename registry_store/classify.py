"""Which kind of outcome an exception is, without importing the library that raised it.

An exception is recognised by the names of its class and base classes, and by the HTTP status that it carries. If these
say nothing, its cause decides.
"""

from __future__ import annotations

from typing import Any, Final

from dspy_registry.registry_store.outcome_kinds import (
    CALLER,
    CANCELLED,
    ERROR,
    INVALID_OUTPUT,
    RATE_LIMITED,
    TIMEOUT,
    UNAVAILABLE,
)

_BY_NAME: Final = (
    # LimitReachedError is ours, and raised before a call begins.
    (
        CANCELLED,
        {"CancelledError", "Cancelled", "KeyboardInterrupt", "GeneratorExit", "SystemExit", "LimitReachedError"},
    ),
    (INVALID_OUTPUT, {"AdapterParseError", "APIResponseValidationError", "LengthFinishReasonError"}),
    # Before TIMEOUT: if no connection was made, the call's time limit was not too short.
    (UNAVAILABLE, {"ConnectTimeout", "ConnectionTimeoutError"}),
    (TIMEOUT, {"TimeoutError", "Timeout", "TimeoutException", "APITimeoutError", "LMTimeoutError", "TimeoutExpired"}),
)
_BY_NAME_WITHOUT_STATUS: Final = (
    (RATE_LIMITED, {"RateLimitError", "LMRateLimitError"}),
    (
        UNAVAILABLE,
        {
            "APIConnectionError",
            "ClientConnectionError",
            "ConnectionError",
            "LMAuthError",
            "LMBillingError",
            "LMConfigurationError",
            "LMServerError",
            "LMTransportError",
            "LMUnsupportedModelError",
            "ServiceUnavailableError",
            "TransportError",
            "URLError",
            "gaierror",
        },
    ),
    (CALLER, {"ContentFilterFinishReasonError", "LMInvalidRequestError", "LMUnsupportedFeatureError"}),
)
_MOST: Final = 64
"""How many exceptions are looked at: chains and groups may be long or circular."""


def kind_of(error: BaseException) -> str:
    """The kind of outcome (`outcome_kinds.KINDS`) of a call that raised this exception. Never raises."""
    try:
        kinds = [_own_kind(each) for each in _chain(error)]
    except Exception:  # an exception holds the program's own objects, and any operation on them may raise
        return ERROR
    if all(kind == CANCELLED for kind in kinds):
        return CANCELLED
    return next((kind for kind in kinds if kind not in (ERROR, CANCELLED)), ERROR)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error (400 to 599) that the exception carries; None: it carries none."""
    carriers = (error, _attribute(error, "response"))
    found = (_attribute(carrier, name) for carrier in carriers for name in ("status_code", "status", "code"))
    return next((int(status) for status in found if isinstance(status, int) and 400 <= status < 600), None)


def _chain(error: BaseException) -> list[BaseException]:
    """The exception, then the members of its group and its cause, as long as none of them has a kind itself."""
    found: list[BaseException] = []
    seen: set[int] = set()
    ahead = [error]
    while ahead and len(seen) < _MOST:
        each = ahead.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        held = _held(each)
        if not held:
            found.append(each)
        if _own_kind(each) == ERROR:
            causes = [] if each.__cause__ is None else [each.__cause__]
            ahead += [*causes, *reversed(held)]
    return found


def _own_kind(error: BaseException) -> str:
    """The kind of an exception by its class and status, without its cause."""
    names = {cls.__name__ for cls in type(error).__mro__}
    named = _named(names, _BY_NAME)
    if named is not None:
        return named
    status = status_of(error)
    return (_named(names, _BY_NAME_WITHOUT_STATUS) or ERROR) if status is None else _kind_of_status(status)


def _named(names: set[str], table: tuple[tuple[str, set[str]], ...]) -> str | None:
    return next((kind for kind, known in table if not names.isdisjoint(known)), None)


def _kind_of_status(status: int) -> str:
    if status == 429:
        return RATE_LIMITED
    if status == 408:
        return TIMEOUT
    return UNAVAILABLE if status >= 500 or 401 <= status <= 404 else CALLER


def _held(error: BaseException) -> tuple[BaseException, ...]:
    # By name: Python 3.10 has groups only from a package.
    if not any(cls.__name__ == "BaseExceptionGroup" for cls in type(error).__mro__):
        return ()
    held = _attribute(error, "exceptions")
    return tuple(each for each in held if isinstance(each, BaseException)) if isinstance(held, tuple | list) else ()


def _attribute(holder: object, name: str) -> Any:
    """An attribute; None: it is missing, or reading it raises, as a program's own objects may."""
    try:
        return getattr(holder, name, None)
    except Exception:
        return None
