"""The root of the messages between a client and the daemon, and those about health. `protocol` has all others."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from dspy_registry.registry_store.layout import LAST_VERSION


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Root of all messages after the greeting."""


class ReportedOutcome(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """How a call ended, for health. `began` and `ended` are seconds on the boot-time clock. See `Outcome`."""

    names: Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)]
    version: Annotated[int, Meta(ge=0, le=LAST_VERSION)]
    kind: str
    began: float
    ended: float
    retry_after: float = 0.0


class ReportOutcomes(Message, frozen=True, tag=22):
    """Calls that just ended. Answered with Done when they count. Nothing of it is durable."""

    id: int
    outcomes: tuple[ReportedOutcome, ...]


class OpenCircuit(Message, frozen=True, tag=23):
    """Open the circuit of a module version for `seconds`; `version` None: of the one in force. Not durable."""

    id: int
    name: str
    seconds: float
    version: int | None = None


class ResetCircuit(Message, frozen=True, tag=24):
    """Close the circuit of a module version; `version` None: of all. Not durable."""

    id: int
    name: str
    version: int | None = None


HealthRequest: TypeAlias = ReportOutcomes | OpenCircuit | ResetCircuit
