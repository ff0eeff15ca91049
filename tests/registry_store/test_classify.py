"""Which kind of outcome an exception is: the classes of real libraries, chains, groups, and objects that misbehave."""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import subprocess
import sys
import urllib.error
from typing import Any, NoReturn

import pytest

from dspy_registry.registry_store import outcome_kinds
from dspy_registry.registry_store.classify import kind_of, status_of
from dspy_registry.registry_store.outcome_kinds import KINDS

BY_STATUS = {
    400: "caller",
    401: "unavailable",
    402: "unavailable",
    403: "unavailable",
    404: "unavailable",
    405: "caller",
    408: "timeout",
    409: "caller",
    413: "caller",
    422: "caller",
    429: "rate_limited",
    500: "unavailable",
    503: "unavailable",
    504: "unavailable",
    529: "unavailable",
}


class WithStatus(Exception):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.__dict__.update(attributes)


class Raising(Exception):
    """Every attribute that is asked for raises."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(name)


class Incomparable(int):
    def __ge__(self, other: object) -> NoReturn:
        raise RuntimeError


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


class BaseExceptionGroup(Exception):
    def __init__(self, *held: object) -> None:
        super().__init__()
        self.exceptions = held


def test_the_order_of_kinds_is_the_one_that_is_stored() -> None:
    assert KINDS == (
        "ok",
        "timeout",
        "rate_limited",
        "unavailable",
        "error",
        "invalid_output",
        "caller",
        "cancelled",
    )
    assert {"ok"} | outcome_kinds.FAILED | outcome_kinds.UNJUDGED == set(KINDS)


@pytest.mark.parametrize(("status", "kind"), BY_STATUS.items())
@pytest.mark.parametrize("attribute", ["status_code", "status", "code"])
def test_an_http_status_decides_wherever_it_is_carried(attribute: str, status: int, kind: str) -> None:
    assert kind_of(WithStatus(**{attribute: status})) == kind
    assert kind_of(WithStatus(response=WithStatus(**{attribute: status}))) == kind


@pytest.mark.parametrize("value", [200, 302, 999, 1006, -1, "429", None, True, 429.0])
def test_what_is_no_status_of_an_error_says_nothing(value: object) -> None:
    assert status_of(WithStatus(status_code=value, code=value)) is None
    assert kind_of(WithStatus(status_code=value, code=value)) == "error"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("x"), "error"),
        (KeyError("x"), "error"),
        (AssertionError(), "error"),
        (TimeoutError(), "timeout"),
        (asyncio.TimeoutError(), "timeout"),
        (concurrent.futures.TimeoutError(), "timeout"),
        (subprocess.TimeoutExpired("x", 1), "timeout"),
        (asyncio.CancelledError(), "cancelled"),
        (concurrent.futures.CancelledError(), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (SystemExit(429), "cancelled"),
        (ConnectionRefusedError(), "unavailable"),
        (BrokenPipeError(), "unavailable"),
        (socket.gaierror(), "unavailable"),
        (urllib.error.URLError("x"), "unavailable"),
        (urllib.error.HTTPError("http://x", 429, "x", {}, None), "rate_limited"),  # type: ignore[arg-type]
        (FileNotFoundError(), "error"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_exceptions_of_python(error: BaseException, kind: str) -> None:
    assert kind_of(error) == kind
    if isinstance(error, urllib.error.HTTPError):
        error.close()


# Chains and groups


def test_what_says_nothing_itself_counts_as_its_cause() -> None:
    assert kind_of(caused(RuntimeError(), caused(RuntimeError(), WithStatus(status_code=429)))) == "rate_limited"
    assert kind_of(caused(ValueError(), TypeError())) == "error"


def test_what_says_something_itself_is_not_overruled_by_its_cause() -> None:
    assert kind_of(caused(TimeoutError(), asyncio.CancelledError())) == "timeout"
    assert kind_of(caused(WithStatus(status_code=400), ConnectionError())) == "caller"


def test_an_error_while_being_cancelled_is_an_error() -> None:
    assert kind_of(caused(RuntimeError(), asyncio.CancelledError())) == "error"


def test_a_group_counts_as_the_first_that_says_something() -> None:
    assert kind_of(BaseExceptionGroup(asyncio.CancelledError(), ValueError(), TimeoutError())) == "timeout"
    assert kind_of(BaseExceptionGroup(ValueError(), asyncio.CancelledError())) == "error"
    assert kind_of(BaseExceptionGroup(BaseExceptionGroup(ConnectionError()), TimeoutError())) == "unavailable"


def test_a_group_of_nothing_but_cancellations_was_cancelled() -> None:
    assert kind_of(BaseExceptionGroup(asyncio.CancelledError(), BaseExceptionGroup(GeneratorExit()))) == "cancelled"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no groups")
def test_the_group_of_a_real_task_group() -> None:
    async def late() -> None:
        await asyncio.sleep(0)
        raise TimeoutError

    async def main() -> None:
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
            group.create_task(late())
            group.create_task(asyncio.sleep(60))

    with pytest.raises(Exception) as raised:  # noqa: PT011 - an ExceptionGroup, which Python 3.10 does not know
        asyncio.run(main())
    assert kind_of(raised.value) == "timeout"


def test_a_circle_of_causes_ends() -> None:
    first, second = RuntimeError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first
    assert kind_of(first) == "error"
    group = BaseExceptionGroup(first, second)
    second.__cause__ = group
    assert kind_of(group) == "error"


def test_exceptions_whose_attributes_raise_are_errors() -> None:
    assert kind_of(Raising()) == "error"
    assert kind_of(WithStatus(response=Raising())) == "error"
    assert kind_of(WithStatus(status_code=Incomparable(400))) == "error"


# Libraries


def litellm_errors() -> dict[str, BaseException]:
    import litellm

    about = {"message": "x", "llm_provider": "openai", "model": "m"}
    return {
        "Timeout": litellm.Timeout(**about),
        "RateLimitError": litellm.RateLimitError(**about),
        "APIConnectionError": litellm.APIConnectionError(**about),
        "ServiceUnavailableError": litellm.ServiceUnavailableError(**about),
        "InternalServerError": litellm.InternalServerError(**about),
        "AuthenticationError": litellm.AuthenticationError(**about),
        "NotFoundError": litellm.NotFoundError(**about),
        "BadRequestError": litellm.BadRequestError(**about),
        "ContextWindowExceededError": litellm.ContextWindowExceededError(**about),
        "ContentPolicyViolationError": litellm.ContentPolicyViolationError(**about),
        "JSONSchemaValidationError": litellm.JSONSchemaValidationError("m", "openai", "{}", "{}"),
    }


@pytest.mark.dspy
@pytest.mark.full  # litellm takes seconds to import
@pytest.mark.xdist_group("litellm")
def test_litellms_exceptions() -> None:
    assert {name: kind_of(error) for name, error in litellm_errors().items()} == {
        "Timeout": "timeout",
        "RateLimitError": "rate_limited",
        "APIConnectionError": "unavailable",
        "ServiceUnavailableError": "unavailable",
        "InternalServerError": "unavailable",
        "AuthenticationError": "unavailable",
        "NotFoundError": "unavailable",
        "BadRequestError": "caller",
        "ContextWindowExceededError": "caller",
        "ContentPolicyViolationError": "caller",
        "JSONSchemaValidationError": "invalid_output",
    }


@pytest.mark.dspy
def test_openais_and_httpxs_exceptions() -> None:
    import httpx
    import openai

    request = httpx.Request("POST", "http://localhost")

    def status_error(status: int) -> BaseException:
        return openai.APIStatusError("x", response=httpx.Response(status, request=request), body=None)

    assert {status: kind_of(status_error(status)) for status in BY_STATUS} == BY_STATUS
    assert kind_of(openai.APITimeoutError(request=request)) == "timeout"
    assert kind_of(openai.APIConnectionError(request=request)) == "unavailable"
    refused = httpx.HTTPStatusError("x", request=request, response=httpx.Response(503, request=request))
    assert kind_of(refused) == "unavailable"
    assert kind_of(httpx.ReadTimeout("x")) == kind_of(httpx.PoolTimeout("x")) == "timeout"
    assert kind_of(httpx.ConnectTimeout("x")) == kind_of(httpx.ConnectError("x")) == "unavailable"
    assert kind_of(httpx.RemoteProtocolError("x")) == "unavailable"


@pytest.mark.dspy
def test_dspys_exceptions() -> None:
    import dspy
    from dspy.utils import exceptions

    unparsed = exceptions.AdapterParseError("JSONAdapter", dspy.Signature("q -> a"), "{")
    assert kind_of(unparsed) == "invalid_output"
    kinds = {
        "LMTimeoutError": "timeout",
        "LMRateLimitError": "rate_limited",
        "LMTransportError": "unavailable",
        "LMServerError": "unavailable",
        "LMAuthError": "unavailable",
        "LMBillingError": "unavailable",
        "LMUnsupportedModelError": "unavailable",
        "LMNotConfiguredError": "unavailable",
        "LMInvalidRequestError": "caller",
        "LMUnsupportedFeatureError": "caller",
        "ContextWindowExceededError": "caller",
        "LMUnexpectedError": "error",
    }
    assert {name: kind_of(getattr(exceptions, name)()) for name in kinds} == kinds
    assert kind_of(exceptions.LMProviderError("x", status=503)) == "unavailable"


@pytest.mark.dspy
def test_an_answer_that_no_adapter_can_parse() -> None:
    import dspy
    from dspy.utils import DummyLM

    with dspy.context(lm=DummyLM([{"other": "x"}] * 4), adapter=dspy.JSONAdapter()), pytest.raises(Exception) as raised:  # noqa: PT011
        dspy.Predict("question -> answer: int")(question="x")
    assert kind_of(raised.value) == "invalid_output"
