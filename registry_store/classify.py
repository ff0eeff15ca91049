"""Which kind of outcome an exception is, without importing the library that raised it.

Classes are recognised by the names in their ancestry, and by the HTTP status that an exception carries. An exception
that says nothing itself counts as what caused it.
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
    # Before TIMEOUT: where no connection comes about, no limit of the call was too short.
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
"""Exceptions looked at: chains and groups may be long, and may be circles."""


def kind_of(error: BaseException) -> str:
    """The kind of outcome (`outcome_kinds.KINDS`) that a call had which raised this. Never raises."""
    try:
        kinds = [_own_kind(each) for each in _chain(error)]
    except Exception:  # what an exception carries is the program's own, and may raise in any operation
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
    """The exception, then what its group holds or caused it, until one says itself what it is."""
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
    """What an exception says itself."""
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
    """None: it has no such attribute, or reading it raises. Exceptions are the program's own objects."""
    try:
        return getattr(holder, name, None)
    except Exception:
        return None
