"""How long a provider asked to wait: attributes and headers, seconds and dates, and what is neither."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any, NoReturn

import pytest

from dspy_registry.registry_store.retry_after import retry_after_of

NOW = 1_800_000_000.0


class Told(Exception):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.__dict__.update(attributes)


class Raising:
    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(name)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (7, 7.0),
        (0.5, 0.5),
        ("30", 30.0),
        (" 1.5 ", 1.5),
        (0, 0.0),
        (-3, 0.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
    ],
)
def test_seconds_and_dates(value: object, seconds: float) -> None:
    for error in (
        Told(retry_after=value),
        Told(headers={"Retry-After": value}),
        Told(response=Told(headers={"retry-after": value})),
        Told(litellm_response_headers={"RETRY-AFTER": value}),
    ):
        assert retry_after_of(error, NOW) == seconds


@pytest.mark.parametrize("value", [None, "", "soon", float("nan"), float("inf"), "nan", True, [], {}, object()])
def test_what_is_no_wait(value: object) -> None:
    assert retry_after_of(Told(retry_after=value, headers={"retry-after": value}), NOW) is None


def test_milliseconds_are_more_exact_than_seconds() -> None:
    assert retry_after_of(Told(headers={"retry-after": "2", "retry-after-ms": "1500"}), NOW) == 1.5


def test_the_cause_may_tell_it() -> None:
    error = RuntimeError()
    error.__cause__ = Told(retry_after=4)
    assert retry_after_of(error, NOW) == 4.0
    error.__cause__.__cause__ = error
    del error.__cause__.retry_after  # type: ignore[attr-defined]
    assert retry_after_of(error, NOW) is None


@pytest.mark.parametrize("error", [ValueError(), Told(response=Raising()), Told(headers=3), Told(headers=Raising())])
def test_what_does_not_tell(error: BaseException) -> None:
    assert retry_after_of(error, NOW) is None


@pytest.mark.dspy
@pytest.mark.full  # litellm takes seconds to import
@pytest.mark.xdist_group("litellm")
def test_real_exceptions() -> None:
    import httpx
    import litellm
    import openai
    from dspy.utils.exceptions import LMRateLimitError

    request = httpx.Request("POST", "http://localhost")
    response = httpx.Response(429, headers={"Retry-After": "12"}, request=request)
    assert retry_after_of(openai.RateLimitError("x", response=response, body=None), NOW) == 12.0
    refused = httpx.HTTPStatusError("x", request=request, response=response)
    assert retry_after_of(refused, NOW) == 12.0
    assert retry_after_of(LMRateLimitError("x", retry_after=3.0), NOW) == 3.0
    limited = litellm.RateLimitError("x", llm_provider="openai", model="m", response=response)
    assert retry_after_of(limited, NOW) == 12.0
