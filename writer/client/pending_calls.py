"""Calls that a process has not reported yet: aggregated by module and version, until a batch takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from dspy_registry.registry_store.evidence import Gathered
from dspy_registry.registry_store.outcome_kinds import CALLER, CANCELLED, FAILED, KINDS, TIMEOUT
from dspy_registry.registry_store.reports import Batch, Report, encode_reports
from dspy_registry.registry_store.usage import LARGEST_COUNT, MINUTES_KEPT
from dspy_registry.registry_store.validation import stored_name_problems
from dspy_registry.writer.client.recorded_call import Call, CheckedCall, Moment, Names, checked, kind_told, plain_name

NAMES_KEPT: Final = 512
"""Modules and versions, of which calls are kept until the next batch."""
BATCH_BYTES: Final = 256 * 1024
"""The report that makes a batch larger than this is its last one."""
_MOST_DOLLARS: Final = 1e12


class Pending:
    """Calls by module and version since the last `take`. `lost` counts those that could not be kept."""

    def __init__(self) -> None:
        self._modules: dict[tuple[Names, int], _Calls] = {}
        self.lost = 0

    def __bool__(self) -> bool:
        return bool(self._modules) or self.lost > 0

    def add(self, call: Call, moment: Moment) -> CheckedCall | None:
        """Count a call that ended between the moment before and this one. Returns what it counted as; None: as lost."""
        try:
            # Every value is read before any is counted: a call that raises leaves no trace.
            read = checked(call, moment)
            calls = self._of(call[0], read.version, moment.now)
            if calls is not None:
                calls.add(read, moment.now)
                return read
        except (Exception, SystemExit, GeneratorExit):  # values are objects of the program, and may raise anything
            pass
        self.lost += 1
        return None

    def add_counts(self, name: Names, ok: Any, error: Any, calls: int, now: int) -> None:
        """Count calls of which only the outcome is known, not even when they began."""
        try:
            kind = kind_told(ok, error)
            known = self._of(name, 0, now)
        except (Exception, SystemExit, GeneratorExit):
            known = None
        if known is None:
            self.lost += calls
        else:
            known.count(kind, calls, now)
            known.widen(0, now)

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
        for (name, version), calls in self._modules.items():
            report = calls.report((name,) if isinstance(name, str) else name, version)
            portion.append(report)
            size += len(encode_reports(report))
            if size > BATCH_BYTES:
                yield tuple(portion)
                portion, size = [], 0
        if portion or self.lost:
            yield tuple(portion)

    def _of(self, name: Names, version: int, now: int) -> _Calls | None:
        """The calls of a module. None when this is no name, or when there are too many names."""
        key = plain_name(name), version
        calls = self._modules.get(key)
        if calls is None and len(self._modules) < NAMES_KEPT and _is_sound(key[0]):
            calls = self._modules[key] = _Calls(now)
        return calls


class _Calls:
    """The calls of one module and version."""

    def __init__(self, now: int) -> None:
        self._tokens_in = self._tokens_out = self._priced_calls = 0
        self._cost_usd = 0.0
        self._first_used = self._last_used = self._began_last = now
        self._began_first = LARGEST_COUNT
        self._kinds: Counter[str] = Counter()
        self._minutes: Counter[int] = Counter()
        self._failed: Counter[int] = Counter()
        self._uncounted: Counter[int] = Counter()
        self._gathered: dict[str, Gathered] = {}

    def add(self, call: CheckedCall, now: int) -> None:
        self.count(call.kind, 1, now)
        self.widen(*call.began)
        self._tokens_in += call.tokens_in
        self._tokens_out += call.tokens_out
        if call.cost_usd is not None:
            self._cost_usd += call.cost_usd
            self._priced_calls += 1
        if call.milliseconds is None:
            return
        if call.size not in self._gathered:
            self._gathered[call.size] = Gathered()
        if call.kind == TIMEOUT:
            self._gathered[call.size].timed_out(call.milliseconds)
        else:
            self._gathered[call.size].completed(call.milliseconds)

    def count(self, kind: str, calls: int, now: int) -> None:
        self._kinds[kind] += calls
        self._last_used = now
        minute = now // 60_000
        if kind != CANCELLED:
            self._minutes[minute] += calls
        if kind in FAILED:
            self._failed[minute] += calls
        if kind == CALLER:
            self._uncounted[minute] += calls
        if len(self._minutes) > 2 * MINUTES_KEPT:
            self._forget_minutes(minute)

    def widen(self, first: int, last: int) -> None:
        """A call began between these times."""
        self._began_last = last if self._began_first == LARGEST_COUNT else max(self._began_last, last)
        self._began_first = min(self._began_first, first)

    def _forget_minutes(self, now: int) -> None:
        for minutes in (self._minutes, self._failed, self._uncounted):
            for minute in [at for at in minutes if not now - MINUTES_KEPT < at <= now]:
                del minutes[minute]

    def report(self, names: tuple[str, ...], version: int) -> Report:
        calls = sum(self._kinds.values()) - self._kinds[CANCELLED]
        return Report(
            names,
            calls=_bounded(calls),
            errors=_bounded(sum(self._kinds[kind] for kind in FAILED)),
            first_used=self._first_used,
            last_used=self._last_used,
            tokens_in=_bounded(self._tokens_in),
            tokens_out=_bounded(self._tokens_out),
            cost_usd=min(self._cost_usd, _MOST_DOLLARS),
            priced_calls=_bounded(self._priced_calls),
            minutes=_by_minute(self._minutes),
            version=version,
            began=(self._began_first, self._began_last),
            kinds=tuple(_bounded(self._kinds[kind]) for kind in KINDS),
            failed=_by_minute(self._failed),
            uncounted=_by_minute(self._uncounted),
            evidence={size: gathered.evidence() for size, gathered in self._gathered.items()},
        )


def _by_minute(minutes: Counter[int]) -> tuple[tuple[int, int], ...]:
    return tuple((minute, _bounded(calls)) for minute, calls in minutes.items())


def _is_sound(name: object) -> bool:
    names = name if isinstance(name, tuple) else (name,)
    return 1 <= len(names) <= 8 and not any(stored_name_problems(each) for each in names)


def _bounded(count: int) -> int:
    return min(count, LARGEST_COUNT)
