"""A reporter that only takes notes: what a callback reports, row by row."""

from __future__ import annotations

from typing import Any, NamedTuple


class Noted(NamedTuple):
    names: tuple[str, ...]
    ok: bool
    size: int | None
    tokens: tuple[int, int]
    cost: float | None
    error: str | None
    began: float | None
    retry_after: float | None


class Notes:
    """Stands in for a UsageReporter."""

    path = "notes"

    def __init__(self) -> None:
        self.rows: list[Noted] = []

    def record(
        self,
        names: Any,
        duration: float,
        ok: bool,
        size: int | None,
        tokens_in: int,
        tokens_out: int,
        cost: float | None,
        *,
        error: str | None = None,
        began: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        assert duration >= 0
        self.rows.append(Noted(names, ok, size, (tokens_in, tokens_out), cost, error, began, retry_after))

    def of(self, ending: str) -> list[Noted]:
        """The calls whose best name ends so."""
        return [row for row in self.rows if row.names[0].endswith(ending)]

    def tokens(self, ending: str) -> tuple[int, int]:
        """Tokens in and out of these calls together."""
        rows = self.of(ending)
        return sum(row.tokens[0] for row in rows), sum(row.tokens[1] for row in rows)
