"""What a cluster costs: three etcd nodes and three hosts on this machine, beside bare etcd. `make bench-cluster`.

Prints a table of what there is to reach, then the figures as one JSON object. Everything shares this machine's
processors, so only ratios of one run mean much.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import cluster_measures as measures
from tests.support.etcd import etcd, host, in_step, patient, section


class Row(NamedTuple):
    """A line of the table: what was measured, what is to be reached, and whether it was."""

    what: str
    measured: str
    to_reach: str
    is_met: bool


def rows(found: dict[str, Any]) -> list[Row]:
    """The table of issue 18: each row beside the comparison that it names."""
    everywhere, bare, commit = found["everywhere"], found["bare_watch"], found["local_commit"]
    most = bare["median_ms"] + 2 * commit["median_ms"]
    late, reads, circuit = found["late"], found["reads"], found["circuit"]
    bound = 2 * (late["bare_range_s"] + late["bulk_load_s"])
    share = reads["under_load"] / reads["alone"]
    times = found["registrations_a_second"] / found["bare_cas_a_second"]
    return [
        Row(
            "registered on any host, readable on every host, one client",
            f"median {everywhere['median_ms']} ms, p99 {everywhere['p99_ms']} ms",
            f"median 8 ms, p99 50 ms; at most {most:.2f} ms: a bare watch and two local durable commits",
            everywhere["median_ms"] <= min(8, most) and everywhere["p99_ms"] <= 50,
        ),
        Row(
            f"durable registrations a second, {measures.CLIENTS} clients over three hosts",
            f"{found['registrations_a_second']:.0f}, {times:.1f} times {found['bare_cas_a_second']:.0f}",
            "4 times one etcd compare-and-set after another",
            times >= 4,
        ),
        Row(
            "cached reads under that load, per second of processor time",
            f"{reads['under_load']:,.0f}, {share:.2f} times {reads['alone']:,.0f}",
            "0.9 times the same host alone",
            share >= 0.9,
        ),
        Row(
            f"a new host catches up with {late['modules']:,} modules",
            f"{late['new_host_s']} s, its start included",
            f"{bound:.2f} s: 2 x bare range read ({late['bare_range_s']} s) and bulk load ({late['bulk_load_s']} s)",
            late["new_host_s"] <= bound,
        ),
        Row(
            "an opened circuit known on every host",
            f"median {circuit['median_ms']} ms, p99 {circuit['p99_ms']} ms",
            "median 20 ms",
            circuit["median_ms"] <= 20,
        ),
    ]


def table(found: dict[str, Any]) -> str:
    """For people."""
    cells = [("what", "measured", "to reach", "reached")]
    cells += [(row.what, row.measured, row.to_reach, "yes" if row.is_met else "no") for row in rows(found)]
    widths = [max(len(cell[column]) for cell in cells) for column in range(4)]
    lines = ["  ".join(one.ljust(width) for one, width in zip(cell, widths, strict=True)) for cell in cells]
    return "\n".join(line.rstrip() for line in lines)


def measured(less: int, only: Sequence[str]) -> dict[str, Any]:
    """All figures, with `less` times less of everything. `only`: these alone; empty: all."""
    with tempfile.TemporaryDirectory() as tmp, ExitStack() as stack:
        folder = Path(tmp)
        cluster = stack.enter_context(etcd(folder / "etcd", 3))
        hosts = [stack.enter_context(host(folder / name, cluster)) for name in ("a", "b", "c")]
        for served in hosts:
            patient(lambda served=served: section(served)["error"] == "")
        steps = {
            "bare_watch": lambda: measures.bare_watch(cluster, 500 // less),
            "bare_cas_a_second": lambda: measures.bare_cas(cluster, 500 // less),
            "local_commit": lambda: measures.local_commits(folder / "alone", 200 // less),
            "everywhere": lambda: measures.everywhere(hosts, 500 // less),
            "circuit": lambda: measures.circuits(hosts, 200 // less),
            "load": lambda: measures.under_load(hosts, 40 // min(less, 4)),
            "late": lambda: measures.catching_up(stack, folder / "late", cluster, hosts[0], 100_000 // less),
        }
        found: dict[str, Any] = {}
        for name, step in steps.items():
            if not only or name in only:
                found[name] = step()
                in_step(*hosts)
        found.update(found.pop("load", {}))
        found["conflicts"] = sum(section(served)["conflicts"] for served in hosts)
    return found


def main(arguments: Sequence[str]) -> None:
    """Measure; `--quick` for less of everything, names of figures for these alone."""
    only = [one for one in arguments if not one.startswith("-")]
    found = measured(10 if "--quick" in arguments else 1, only)
    if not only:
        sys.stdout.write(table(found) + "\n")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
