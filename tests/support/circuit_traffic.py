"""Simulated calls against one circuit, for the defaults: how often it opens without reason, how soon with one.

python -m tests.support.circuit_traffic    prints the tables of docs/health.md
"""

from __future__ import annotations

import random

from dspy_registry.registry_store.circuit import CLOSED, DEFAULTS, Circuit, Outcome

HOURS = {0.1: 100.0, 1.0: 20.0, 100.0: 4.0}  # simulated, by calls a second
NOTICE_RATES = (0.1, 1.0, 20.0, 100.0)
SHARES = (0.01, 0.05, 0.1)  # of calls that fail
_LATENCY = 0.5  # seconds, of a call


def false_openings(rate: float, share: float, hours: float, seed: int = 0) -> float:
    """Openings an hour of a provider that always fails this share of calls, and is not out."""
    chance = random.Random(seed)
    circuit, now, end = Circuit(), 1000.0, 1000.0 + hours * 3600
    while now < end:
        now += chance.expovariate(rate)
        _call(circuit, now, chance.random() < share, chance)
    return circuit.openings / hours


def seconds_to_notice(rate: float, times: int, seed: int = 0) -> float:
    """From the beginning of an outage in which every call fails to the opening: the median."""
    chance = random.Random(seed)
    return sorted(_noticed_after(rate, chance) for _ in range(times))[times // 2]


def _noticed_after(rate: float, chance: random.Random) -> float:
    circuit, outage = Circuit(), 1000.0
    now = outage - max(120.0, 40 / rate)
    while circuit.state(now) == CLOSED:
        now += chance.expovariate(rate)
        _call(circuit, now, now >= outage, chance)
    return now - outage


def _call(circuit: Circuit, ended: float, failed: bool, chance: random.Random) -> None:
    outcome = Outcome(ended - _LATENCY, ended, "error" if failed else "ok")
    circuit.record(outcome, ended, DEFAULTS, chance.random())


def openings_row(rate: float) -> str:
    """Openings an hour at this many calls a second, as docs/health.md shows them."""
    found = [f"{false_openings(rate, share, HOURS[rate]):.2f}" for share in SHARES]
    return f"| {rate:g} | {' | '.join(found)} |"


def notice_row(rate: float, times: int = 51) -> str:
    """Seconds until an outage is seen, as docs/health.md shows them."""
    return f"| {rate:g} | {seconds_to_notice(rate, times):.1f} |"


if __name__ == "__main__":
    print(*map(openings_row, HOURS), *map(notice_row, NOTICE_RATES), sep="\n")
