"""Puts the raw results of runs into tests/stress/results.json, and their table into docs/reliability.md.

    python -m tests.stress.publish build/stress.json [more.json …]

A later file replaces what an earlier one says of the same fault, so that faults may be run one by one.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results.json"
PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
_TABLE: Final = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)

Run = dict[str, Any]


def merged(runs: list[Run]) -> list[Run]:
    """One entry for each fault, with the command, the date and the machine of its run."""
    found: dict[str, Run] = {}
    for run in runs:
        shared = {key: value for key, value in run.items() if key != "faults"}
        found.update({fault["name"]: {**shared, **fault} for fault in run["faults"]})
    return list(found.values())


def table(faults: list[Run]) -> str:
    """The table, and what was left out by name."""
    lines = ["| fault | how | tried | violations | minutes | run |", "| --- | --- | --- | --- | --- | --- |"]
    for fault in faults:
        ran = f"`{fault['command']}`, {fault['date'][:10]}, commit {fault['revision'] or 'unknown'}"
        tried = f"{fault['tried']:,} {fault['unit']}"
        minutes = f"{fault['seconds'] / 60:.1f}"
        cells = (fault["name"], fault["how"], tried, str(len(fault["violations"])), minutes, ran)
        lines.append(f"| {' | '.join(cells)} |")
    machines = sorted({fault["machine"] for fault in faults})
    skipped = [f"{fault['name']}: {key}: {why}" for fault in faults for key, why in sorted(fault["skipped"].items())]
    lines += ["", f"Machine: {'; '.join(machines)}.", "", f"Left out: {'; '.join(skipped) or 'nothing'}.", ""]
    return "\n".join(lines)


def filled(page: str, faults: list[Run]) -> str:
    """The page with the table of these results."""
    return _TABLE.sub(lambda _: table(faults), page)


def main(paths: list[str]) -> None:
    """Write both files."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    runs = [json.loads(Path(path).read_text()) for path in paths]
    faults = merged([*({**fault, "faults": [fault]} for fault in before), *runs])
    RESULTS.write_text(json.dumps(faults, indent=1) + "\n")
    PAGE.write_text(filled(PAGE.read_text(), faults))


if __name__ == "__main__":
    main(sys.argv[1:])
