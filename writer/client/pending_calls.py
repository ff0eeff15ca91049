"""Calls that a process has not reported yet: aggregated by module, in bounded memory, until a batch takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from dspy_registry.registry_store.duration_sketch import DurationSketch
from dspy_registry.registry_store.usage import LARGEST_COUNT, MINUTES_KEPT, Batch, Report, encode_reports, size_class
from dspy_registry.registry_store.validation import name_problems

NAMES_KEPT: Final = 512
BATCH_BYTES: Final = 256 * 1024
"""The report that makes a batch larger than this is its last one."""
_MOST_DOLLARS: Final = 1e12

Names = str | tuple[str, ...]
Call = tuple[Names, Any, Any, Any, Any, Any, Any]
"""Name, milliseconds, ok, input characters, tokens in and out, cost: the unchecked arguments of `record`."""


class Pending:
    """Calls by module since the last `take`. `lost` counts the calls that could not be kept."""

    def __init__(self) -> None:
        self._modules: dict[Names, _Calls] = {}
        self.lost = 0

    def __bool__(self) -> bool:
        return bool(self._modules) or self.lost > 0

    def add(self, call: Call, now: int) -> None:
        """Count a call that ended about `now` (milliseconds since the epoch)."""
        try:
            calls = self._of(call[0], now)
            if calls is not None:
                calls.add(call, now)
        except Exception:  # the values are objects of the program, and any operation on them may raise anything
            calls = None
        if calls is None:
            self.lost += 1

    def add_counts(self, name: Names, calls: int, errors: int, now: int) -> None:
        """Count calls of which nothing else is known."""
        try:
            known = self._of(name, now)
        except Exception:
            known = None
        if known is None:
            self.lost += calls
        else:
            known.count(calls, errors, now)

    def take(self, reporter: bytes, first_number: int) -> list[tuple[int, bytes]]:
        """All pending calls, as numbered and encoded batches. Afterwards nothing is pending."""
        batches: list[tuple[int, bytes]] = []
        for reports in self._portions():
            number = first_number + len(batches)
            batches.append((number, encode_reports(Batch(reporter, number, reports, _bounded(self.lost)))))
            self.lost = 0
        self._modules = {}
        return batches

    def _portions(self) -> Iterator[tuple[Report, ...]]:
        portion: list[Report] = []
        size = 0
        for name, calls in self._modules.items():
            report = calls.report((name,) if isinstance(name, str) else name)
            portion.append(report)
            size += len(encode_reports(report))
            if size > BATCH_BYTES:
                yield tuple(portion)
                portion, size = [], 0
        if portion or self.lost:
            yield tuple(portion)

    def _of(self, name: Names, now: int) -> _Calls | None:
        """The calls of the module. None when `name` is not a name, or when there are too many names."""
        name = _plain(name)
        calls = self._modules.get(name)
        if calls is None and len(self._modules) < NAMES_KEPT and _is_sound(name):
            calls = self._modules[name] = _Calls(now)
        return calls


class _Calls:
    """The calls of one module."""

    def __init__(self, now: int) -> None:
        self._calls = self._errors = self._tokens_in = self._tokens_out = self._priced_calls = 0
        self._cost_usd = 0.0
        self._first_used = self._last_used = now
        self._minutes: Counter[int] = Counter()
        self._sketches: dict[str, DurationSketch] = {}

    def add(self, call: Call, now: int) -> None:
        """Read every value before any is counted: a call that raises leaves no trace."""
        _, milliseconds, ok, input_chars, tokens_in, tokens_out, cost_usd = call
        is_ok = bool(ok)
        read, written = int(_amount(tokens_in)), int(_amount(tokens_out))
        # An unknown price is not a price of 0.
        dollars = float(cost_usd) if _is_number(cost_usd) and cost_usd >= 0 else None
        duration = float(milliseconds) if is_ok and _is_number(milliseconds) else None
        size = size_class(int(input_chars) if isinstance(input_chars, int) else None)
        self.count(1, 0 if is_ok else 1, now)
        self._tokens_in += read
        self._tokens_out += written
        if dollars is not None:
            self._cost_usd += dollars
            self._priced_calls += 1
        if duration is not None:
            self._add_duration(size, duration)

    def _add_duration(self, size: str, milliseconds: float) -> None:
        if size not in self._sketches:
            self._sketches[size] = DurationSketch()
        self._sketches[size].add(milliseconds)

    def count(self, calls: int, errors: int, now: int) -> None:
        self._calls += calls
        self._errors += errors
        self._last_used = now
        self._minutes[now // 60_000] += calls
        if len(self._minutes) > 2 * MINUTES_KEPT:
            self._forget_minutes(now // 60_000)

    def _forget_minutes(self, now: int) -> None:
        self._minutes = Counter({at: calls for at, calls in self._minutes.items() if now - MINUTES_KEPT < at <= now})

    def report(self, names: tuple[str, ...]) -> Report:
        return Report(
            names,
            calls=_bounded(self._calls),
            errors=_bounded(self._errors),
            first_used=self._first_used,
            last_used=self._last_used,
            tokens_in=_bounded(self._tokens_in),
            tokens_out=_bounded(self._tokens_out),
            cost_usd=min(self._cost_usd, _MOST_DOLLARS),
            priced_calls=_bounded(self._priced_calls),
            minutes=tuple((minute, _bounded(calls)) for minute, calls in self._minutes.items()),
            durations={size: sketch.dump() for size, sketch in self._sketches.items()},
        )


def _plain(name: Names) -> Names:
    """Plain strings: a subclass of the program's may compare and hash in any way, at any later time."""
    if isinstance(name, tuple):
        return tuple(str.__str__(each) for each in name)
    return str.__str__(name)


def _is_sound(name: object) -> bool:
    names = name if isinstance(name, tuple) else (name,)
    return 1 <= len(names) <= 8 and not any(name_problems(each) for each in names)


def _is_number(value: object) -> bool:
    """Whether this is a finite number below the largest count."""
    return isinstance(value, int | float) and abs(value) < LARGEST_COUNT


def _amount(value: Any) -> float:
    """A count or an amount of money. 0 for anything else."""
    return value if _is_number(value) and value > 0 else 0


def _bounded(count: int) -> int:
    return min(count, LARGEST_COUNT)
