"""The worked example of docs/routing.md is what the registry computes."""

from __future__ import annotations

import re
import time
from pathlib import Path

from dspy_registry import ModuleInfo, Registry, RegistryWriter
from dspy_registry.readers import ranking
from dspy_registry.router.course import FIRST_PAUSE, JITTER, LONGEST_PAUSE, ROUNDS
from tests.support import ROOT
from tests.support.usage_helpers import batches, merge

PAGE = (ROOT / "docs" / "routing.md").read_text(encoding="utf-8")
DECLARED = {"acme.Quick": (400, 0.004), "acme.Careful": (1600, 0.001), "acme.Slow": (20_000, 0.0001)}


def rows() -> list[list[str]]:
    """The cells of the example's table."""
    found = re.findall(r"^\| (`acme\..*) \|$", PAGE, re.MULTILINE)
    return [[cell.strip().strip("`") for cell in row.split("|")] for row in found]


def test_the_example_is_computed(registry_folder: Path) -> None:
    now = int(time.time() * 1000)
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_modules(
            [
                ModuleInfo(
                    name,
                    capabilities=("answer",),
                    estimated_duration=milliseconds,
                    metadata={"cost_usd_per_call": dollars},
                )
                for name, (milliseconds, dollars) in DECLARED.items()
            ]
        )
        quick = [("acme.Quick", 0.0, number >= 10) for number in range(40)]
        merge(writer, batches(quick, now=now, version=1), now=now)
        route = registry.route("answer", input_size=500, deadline_ms=8000, basis="declared")
        quickest = registry.route("answer", input_size=500, deadline_ms=8000, basis="declared", prefer="latency")
    told = route.explain()
    computed = [
        [each.name, f"{each.expected_ms:g}", f"{each.cost:g}", f"{each.failure_rate:g}", f"{each.score:.4g}"]
        for each in route.alternatives
    ]
    *ranked, last = rows()
    assert [[row[0], row[1], row[2], row[5], row[6]] for row in ranked] == computed
    assert [row[3].replace(" / ", " of ") in told for row in ranked] == [True, True]
    assert [(each.name, each.reason) for each in route.excluded] == [(last[0], last[6].split(": ")[1].strip("`"))]
    assert quickest.name == "acme.Quick"
    assert [f"{each.score:.4g}" for each in quickest.alternatives] == ["533.3", "1633"]
    assert "533.3 and 1633" in PAGE


def test_the_numbers_are_those_in_use() -> None:
    numbers = {
        "10 calls of prior": ranking.PRIOR_CALLS,
        f"f₀ = {ranking.PRIOR_RATE:g} below {ranking.PRIOR_ENOUGH} calls": 20,
        f"f at most {ranking.LARGEST_RATE:g}": 0.9,
        f"{FIRST_PAUSE:g} s × 2, at most {LONGEST_PAUSE:g} s, jitter {JITTER:g}": 0.5,
        f"{ROUNDS} rounds without a deadline": 3,
    }
    assert [words for words in numbers if f"| {words} |" not in PAGE] == []
    assert ranking.PRIOR_CALLS == 10
