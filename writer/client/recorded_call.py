"""One recorded call: from the unchecked arguments of `record` to values that can be counted. Pure."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from dspy_registry.registry_store.boot_clock import Clocks
from dspy_registry.registry_store.layout import LAST_VERSION
from dspy_registry.registry_store.outcome_kinds import ERROR, KINDS, OK, TIMEOUT
from dspy_registry.registry_store.policy import LONGEST_SECONDS
from dspy_registry.registry_store.usage import LARGEST_COUNT, size_class

Names: TypeAlias = "str | tuple[str, ...]"
Call: TypeAlias = tuple[Names, Any, Any, Any, Any, Any, Any, Any, Any, Any, Any, Any]
"""Name, milliseconds, ok, input characters, tokens in and out, cost, error, version, limit, began, retry after.

These are the arguments of `record`, as they came.
"""

_KINDS: Final = frozenset(KINDS)
_TIMED: Final = (OK, TIMEOUT)
_NUMBER: Final = (int, float)  # a union would be made again for each value


class Moment(NamedTuple):
    """When calls are taken from the queue, and when that was done before: in milliseconds since the epoch.

    `monotonic` is `time.monotonic()` then. `rest` is the part of a millisecond that `now` leaves out: without it, a
    call that began just after a new version would seem to have begun before it.
    """

    now: int
    before: int
    monotonic: float
    rest: float = 0.0


def moment_at(clocks: Clocks, before: int) -> Moment:
    """The moment that the clocks show. `before` is in milliseconds since the epoch."""
    now, rest = divmod(clocks.wall, 1_000_000)
    return Moment(now, before, clocks.monotonic, rest / 1e6)


class CheckedCall(NamedTuple):
    """`milliseconds` is the duration of a call that completed, the limit of one that timed out; None: it has no use.

    `cost_usd` None: not known, which is not a price of 0. `began` are two times, in milliseconds since the epoch,
    between which the call began. `version` 0: the one in force then. `began_ago` and `ended_ago` are seconds before the
    moment; `retry_after` is in seconds, 0: the provider named none.
    """

    kind: str
    size: str
    milliseconds: float | None
    tokens_in: int
    tokens_out: int
    cost_usd: float | None
    version: int
    began: tuple[int, int]
    began_ago: float
    ended_ago: float
    retry_after: float


def checked(call: Call, moment: Moment) -> CheckedCall:
    """What a call counts as. A value that makes no sense counts as not known. May raise what its values raise."""
    _, duration, _, _, tokens_in, tokens_out, cost_usd, _, _, _, began, retry_after = call
    kind, version, size, milliseconds = measured(call)
    took = float(duration) if _is_number(duration) else None
    return CheckedCall(
        kind,
        size,
        milliseconds,
        int(_amount(tokens_in)),
        int(_amount(tokens_out)),
        float(cost_usd) if _is_number(cost_usd) and cost_usd >= 0 else None,
        version,
        _began(began, took, moment),
        *_ago(began, took or 0.0, moment),
        float(min(_amount(retry_after), LONGEST_SECONDS)),
    )


def measured(call: Call) -> tuple[str, int, str, float | None]:
    """Kind, version, size and milliseconds of a `CheckedCall`: what time limits are made from.

    Who asks before each call needs only these. May raise what the values raise.
    """
    _, duration, ok, input_chars, _, _, _, error, version, limit, _, _ = call
    if type(version) is not int or not 0 < version <= LAST_VERSION:
        version = int(version) if isinstance(version, int) and 0 < version <= LAST_VERSION else 0
    if type(input_chars) is not int:
        input_chars = int(input_chars) if isinstance(input_chars, int) else None
    size = size_class(input_chars)
    if ok is True and error is None and type(duration) is float and abs(duration) < LARGEST_COUNT:  # the usual call
        return OK, version, size, duration
    kind = kind_told(ok, error)
    milliseconds = None
    if kind == TIMEOUT and _is_number(limit) and limit > 0:
        milliseconds = float(limit)
    elif kind in _TIMED and _is_number(duration):
        milliseconds = float(duration)
    return kind, version, size, milliseconds


def _ago(began: Any, took: float, moment: Moment) -> tuple[float, float]:
    """How many seconds ago a call began and ended. A call that does not tell is taken to have ended just now."""
    seconds = max(0.0, took / 1000)
    if not _is_number(began):
        return seconds, 0.0
    ago = max(0.0, moment.monotonic - float(began))
    return ago, max(0.0, ago - seconds)


def plain_name(name: Names) -> Names:
    """Plain strings: a subclass of the program's may compare and hash in any way, at any later time."""
    if isinstance(name, tuple):
        return tuple(str.__str__(each) for each in name)
    return str.__str__(name)


def kind_told(ok: Any, error: Any) -> str:
    """The kind of outcome that two arguments of `record` tell. May raise what `ok` raises."""
    if error is None:
        return OK if ok else ERROR
    return str(error) if isinstance(error, str) and error in _KINDS else ERROR


def _began(began: Any, took: float | None, moment: Moment) -> tuple[int, int]:
    if _is_number(began):
        at = moment.now + (moment.rest - (moment.monotonic - float(began)) * 1000)
        first = last = int(at)
    elif took is not None:
        first, last = int(moment.before - took), int(moment.now - took)
    else:
        first, last = 0, moment.now
    return min(max(0, first), moment.now), min(max(0, last), moment.now)


def _is_number(value: object) -> bool:
    """Whether this is a finite number below the largest count."""
    return isinstance(value, _NUMBER) and abs(value) < LARGEST_COUNT


def _amount(value: Any) -> float:
    """A count or an amount of money. 0 for anything else."""
    return value if _is_number(value) and value > 0 else 0
