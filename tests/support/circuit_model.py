"""What a circuit is to do, written down a second time and as plainly as can be: every outcome is kept for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

from dspy_registry.registry_store.circuit import CircuitRules, Outcome


@dataclass
class CircuitModel:
    """`history` holds (ended, failed) since the circuit was last closed."""

    rules: CircuitRules
    deadline: float | None = None
    changed: float = 0.0
    doublings: int = 0
    openings: int = 0
    good_probes: int = 0
    history: list[tuple[float, bool]] = field(default_factory=list)

    def state(self, now: float) -> str:
        if self.deadline is None:
            return "closed"
        return "half_open" if now >= self.deadline else "open"

    def record(self, outcome: Outcome, now: float, chance: float) -> None:
        state = self.state(now)
        failed = outcome.kind in ("timeout", "rate_limited", "unavailable", "error")
        state_began = self.deadline if state == "half_open" else self.changed
        assert state_began is not None
        if state == "open" or outcome.kind in ("caller", "cancelled") or outcome.began < state_began:
            return
        if outcome.kind == "rate_limited" and outcome.retry_after > 0:
            self._open(now, outcome.retry_after)
        elif state == "half_open" and failed:
            self._fail(now, chance)
        elif state == "half_open":
            self.good_probes += 1
            if self.good_probes >= self.rules.closing_calls:
                self.close(now)
        else:
            self.history.append((min(outcome.ended, now), failed))
            if failed and self._is_bad(now):
                self._fail(now, chance)

    def close(self, now: float) -> None:
        self.deadline, self.changed, self.good_probes, self.history = None, now, 0, []

    def reset(self, now: float) -> None:
        self.close(now)
        self.doublings = 0

    def open_by_hand(self, now: float, seconds: float) -> None:
        self.deadline, self.changed = now + seconds, now
        self.openings += 1
        self.good_probes, self.history = 0, []

    def _is_bad(self, now: float) -> bool:
        newest = sorted(self.history)[-self.rules.window_calls :]
        window = [failed for ended, failed in newest if ended >= now - self.rules.window_seconds]
        return sum(window) >= self.rules.minimum_failures and sum(window) / len(window) >= self.rules.failure_share

    def _fail(self, now: float, chance: float) -> None:
        if self.deadline is None and now - self.changed >= self.rules.healthy_seconds:
            self.doublings = 0
        jitter = 0.8 + 0.4 * chance
        self._open(now, self.rules.open_seconds * 2**self.doublings * jitter)
        self.doublings += 1

    def _open(self, now: float, seconds: float) -> None:
        self.open_by_hand(now, min(seconds, self.rules.longest_open_seconds))
