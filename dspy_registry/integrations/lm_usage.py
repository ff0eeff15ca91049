"""What a call of a language model used: tokens and dollars, from what DSPy keeps of it.

That is the entry in a history. Where DSPy keeps no history, it is the entry that its `track_usage` has just added.
Providers may report anything, so every value is checked: what is no count is 0, what is no price is None.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import dspy
from dspy.clients.base_lm import GLOBAL_HISTORY

_SEARCHED: Final = 32
_LARGEST: Final = 2**53

_log = logging.getLogger("dspy_registry")


class Spent(NamedTuple):
    """Tokens in, tokens out, US dollars; None: not known."""

    tokens_in: int
    tokens_out: int
    dollars: float | None


NOTHING: Final = Spent(0, 0, None)


class UsageSource:
    """Finds what each call of a language model used. Threads may share it."""

    def __init__(self) -> None:
        self._taken: WeakKeyDictionary[Any, dict[str, int]] = WeakKeyDictionary()
        self._has_told = False

    def begin(self, lm: Any) -> int:
        """Entries of the usage tracker in force when a call of `lm` begins: for `end`."""
        return len(_entries(_tracker(), lm))

    def end(self, lm: Any, outputs: Any, before: int) -> Spent:
        """What the call used that has just returned `outputs`. An answer from DSPy's cache used nothing."""
        entry = _entry(lm, outputs) if outputs is not None else None
        if entry is None:
            tracked = self._last_tracked(lm, before)
            if tracked is None and outputs is not None:
                self._tell()
            return _spent(tracked, None)
        if getattr(entry.get("response"), "cache_hit", False):
            return NOTHING
        return _spent(entry.get("usage"), entry.get("cost"))

    def _last_tracked(self, lm: Any, before: int) -> Any:
        """The entry that this call added, if it added one: DSPy adds it in the same step in which the call ends."""
        tracker = _tracker()
        entries = _entries(tracker, lm)
        if not entries:
            return None
        taken = self._taken.setdefault(tracker, {})
        model = str(lm.model)
        if len(entries) <= max(before, taken.get(model, 0)):
            return None
        taken[model] = len(entries)
        return entries[-1]

    def _tell(self) -> None:
        if not self._has_told and getattr(dspy.settings, "disable_history", False) and _tracker() is None:
            self._has_told = True
            _log.warning(
                "calls are counted without tokens and cost: dspy.settings.disable_history keeps DSPy from telling "
                "them. Set track_usage=True for the tokens."
            )


def will_be_tracked() -> bool:
    """Whether DSPy will put the tokens of the module call that begins now on its prediction."""
    return bool(getattr(dspy.settings, "track_usage", False)) and _tracker() is None


def tracked_tokens(outputs: Any) -> tuple[int, int]:
    """Tokens in and out that `track_usage` put on a prediction; 0 for anything else."""
    get_usage = getattr(outputs, "get_lm_usage", None)
    usage = get_usage() if callable(get_usage) else None
    return _tokens(usage.values()) if isinstance(usage, dict) else (0, 0)


def total(spent: Sequence[Spent]) -> Spent:
    """All of it together. The dollars are those of the calls whose price is known; None: of no call."""
    prices = [each.dollars for each in spent if each.dollars is not None]
    tokens_in, tokens_out = sum(each.tokens_in for each in spent), sum(each.tokens_out for each in spent)
    return Spent(tokens_in, tokens_out, sum(prices) if prices else None)


def _tracker() -> Any:
    return getattr(dspy.settings, "usage_tracker", None)


def _entries(tracker: Any, lm: Any) -> Sequence[Any]:
    data = getattr(tracker, "usage_data", None)
    return data.get(getattr(lm, "model", None), ()) if isinstance(data, dict) else ()


def _entry(lm: Any, outputs: Any) -> Mapping[str, Any] | None:
    """The history's entry of the call that returned `outputs`. With `max_history_size` 0 only the global one has it."""
    for history in (getattr(lm, "history", None) or (), GLOBAL_HISTORY):
        for entry in reversed(history[-_SEARCHED:]):
            if isinstance(entry, dict) and (entry.get("outputs") is outputs or entry.get("response") is outputs):
                return entry
    return None


def _spent(usage: Any, cost: Any) -> Spent:
    tokens_in, tokens_out = _tokens((usage,))
    is_price = _is_number(cost) and isinstance(usage, dict) and bool(usage)
    return Spent(tokens_in, tokens_out, float(cost) if is_price else None)


def _tokens(usages: Iterable[Any]) -> tuple[int, int]:
    used = [usage for usage in usages if isinstance(usage, dict)]
    return (
        sum(_count(usage, "prompt_tokens", "input_tokens") for usage in used),
        sum(_count(usage, "completion_tokens", "output_tokens") for usage in used),
    )


def _count(usage: dict[str, Any], *names: str) -> int:
    """The first of these values that is a count above 0; else 0."""
    return next((int(usage[name]) for name in names if _is_number(usage.get(name)) and usage[name] > 0), 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LARGEST
