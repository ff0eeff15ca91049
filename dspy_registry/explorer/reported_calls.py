"""`POST /api/v1/usage`: calls that a program in another language reports, as `UsageReporter.record` takes them."""

from __future__ import annotations

import time
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from dspy_registry.registry_store.usage import LARGEST_COUNT
from dspy_registry.writer.client.reporter import UsageReporter

MOST_CALLS: Final = 1_000
"""Calls in one request."""
MOST_BYTES: Final = 1024 * 1024
_LONGEST_MS: Final = 30 * 24 * 3600 * 1000.0

Name = Annotated[str, Field(min_length=1, max_length=255)]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Kind = Literal["ok", "timeout", "rate_limited", "unavailable", "error", "invalid_output", "caller", "cancelled"]


class ReportedCall(BaseModel):
    """A call that has ended. The fields are the arguments of `UsageReporter.record`, but for `began_at`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    name: Name | Annotated[list[Name], Field(min_length=1, max_length=8)] = Field(
        description="The module's registered name, or several possible names, best first."
    )
    duration_ms: float = Field(ge=0, le=_LONGEST_MS)
    ok: bool = True
    input_chars: Count | None = Field(default=None, description="Length of the input; null: not known.")
    tokens_in: Count = 0
    tokens_out: Count = 0
    cost_usd: float | None = Field(default=None, ge=0, le=1e9, description="US dollars; null: not known.")
    error: Kind | None = Field(default=None, description="The kind of outcome; null: as `ok` says.")
    version: int = Field(default=0, ge=0, le=2**31, description="0: the version in force when the call began.")
    limit_ms: float | None = Field(default=None, gt=0, le=_LONGEST_MS, description="The limit that was enforced.")
    began_at: float | None = Field(
        default=None, gt=0, description="Unix time in seconds at which the call began; null: its duration ago."
    )
    retry_after: float | None = Field(default=None, ge=0, le=86_400, description="Seconds; null: not told.")


class ReportedCalls(BaseModel):
    """What one request reports."""

    model_config = ConfigDict(extra="forbid")

    calls: list[ReportedCall] = Field(min_length=1, max_length=MOST_CALLS)


def record(reporter: UsageReporter, reported: ReportedCalls) -> int:
    """Hand the calls to a reporter of this process; how many there were."""
    offset = time.monotonic() - time.time()
    for call in reported.calls:
        began = None if call.began_at is None else min(call.began_at + offset, time.monotonic())
        reporter.record(
            call.name if isinstance(call.name, str) else tuple(call.name),
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
