"""`POST /api/v1/usage`: calls that a program in another language reports, as `UsageReporter.record` takes them."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from dspy_registry.registry_store.layout import LAST_VERSION, MAX_NAME_BYTES
from dspy_registry.registry_store.usage import LARGEST_COUNT
from dspy_registry.registry_store.validation import stored_name_problems
from dspy_registry.writer.client.pending_calls import NAMES_KEPT
from dspy_registry.writer.client.recorded_call import Names
from dspy_registry.writer.client.reporter import UsageReporter

MOST_CALLS: Final = 1_000
"""Calls in one request."""
MOST_BYTES: Final = 1024 * 1024
_LONGEST_MS: Final = 30 * 24 * 3600 * 1000.0
_MOST_NAMES: Final = 8
_AHEAD: Final = 24 * 3600.0
"""Seconds that another host's clock may be ahead. What is later is no time in seconds: milliseconds, perhaps."""


def _checked_names(given: Any) -> Any:
    """Refuses here what the reporter would count as lost later."""
    names = given if isinstance(given, list) else [given]
    if not 1 <= len(names) <= _MOST_NAMES:
        raise ValueError(f"{len(names)} names, allowed are 1 to {_MOST_NAMES}")
    problems = [problem.removeprefix("name: ") for name in names for problem in stored_name_problems(name)]
    if problems:
        raise ValueError("; ".join(problems))
    return given


def _checked_time(began_at: float) -> float:
    if began_at > time.time() + _AHEAD:
        raise ValueError("lies more than a day ahead; it is Unix time in seconds")
    return began_at


Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_BYTES)]
Count = Annotated[int, Field(ge=0, lt=LARGEST_COUNT)]
Kind = Literal["ok", "timeout", "rate_limited", "unavailable", "error", "invalid_output", "caller", "cancelled"]


class ReportedCall(BaseModel):
    """A call that has ended. The fields are the arguments of `UsageReporter.record`, but for `began_at`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    name: Annotated[
        Name | Annotated[list[Name], Field(min_length=1, max_length=_MOST_NAMES)], BeforeValidator(_checked_names)
    ] = Field(description="The module's registered name, or several possible names, best first. Bytes are counted.")
    duration_ms: float = Field(ge=0, le=_LONGEST_MS)
    ok: bool = True
    input_chars: Count | None = Field(default=None, description="Length of the input; null: not known.")
    tokens_in: Count = 0
    tokens_out: Count = 0
    cost_usd: float | None = Field(default=None, ge=0, le=1e9, description="US dollars; null: not known.")
    error: Kind | None = Field(default=None, description="The kind of outcome; null: as `ok` says.")
    version: int = Field(default=0, ge=0, le=LAST_VERSION, description="0: the version in force when the call began.")
    limit_ms: float | None = Field(default=None, gt=0, le=_LONGEST_MS, description="The limit that was enforced.")
    began_at: Annotated[float, AfterValidator(_checked_time)] | None = Field(
        default=None, gt=0, description="Unix time in seconds at which the call began; null: its duration ago."
    )
    retry_after: float | None = Field(default=None, ge=0, le=86_400, description="Seconds; null: not told.")


class ReportedCalls(BaseModel):
    """What one request reports."""

    model_config = ConfigDict(extra="forbid")

    calls: list[ReportedCall] = Field(min_length=1, max_length=MOST_CALLS)

    @field_validator("calls")
    @classmethod
    def _are_kept(cls, calls: list[ReportedCall]) -> list[ReportedCall]:
        kinds = len({(_name(call), call.version) for call in calls})
        if kinds > NAMES_KEPT:
            raise ValueError(f"{kinds} different modules and versions, allowed are {NAMES_KEPT} in one request")
        return calls


def _name(call: ReportedCall) -> Names:
    return call.name if isinstance(call.name, str) else tuple(call.name)


def record(reporter: UsageReporter, reported: ReportedCalls) -> int:
    """Hand the calls to a reporter of this process; how many there were."""
    offset = time.monotonic() - time.time()
    for call in reported.calls:
        began = None if call.began_at is None else min(call.began_at + offset, time.monotonic())
        reporter.record(
            _name(call),
            call.duration_ms,
            call.ok,
            call.input_chars,
            call.tokens_in,
            call.tokens_out,
            call.cost_usd,
            error=call.error,
            version=call.version,
            limit_ms=call.limit_ms,
            began=began,
            retry_after=call.retry_after,
        )
    return len(reported.calls)
