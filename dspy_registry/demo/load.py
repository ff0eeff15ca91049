"""The stage in which readers read while a client keeps updating."""

from __future__ import annotations

from typing import Any

from dspy_registry.cli import tables
from dspy_registry.demo.readers import Reader, percentile
from dspy_registry.demo.stage import Demo
from dspy_registry.demo.updates import ARRIVING, LIVE, Marks, Updates
from dspy_registry.demo.view import COLUMNS, duration, rate, row, watch


def read_under_load(demo: Demo) -> None:
    """Readers as fast as they can, a client that keeps updating, and the count of stale reads."""
    demo.title(f"{demo.readers} reader processes route calls while a client keeps updating through the daemon")
    marks = Marks(demo.folder / "acknowledged")
    demo.stack.callback(marks.close)
    updates = Updates(demo.client, marks)
    demo.stack.callback(updates.close)
    updates.start()
    readers = _start_readers(demo, marks)
    watch(readers, updates, demo.seconds, quiet=demo.quiet)
    for reader in readers:
        reader.stop()
    for reader in readers:
        reader.close()
    updates.close()
    _note(demo, readers, updates)
    _tell(demo, readers)
    demo.failures += _failures(demo.facts["stale"], readers, updates)


def _start_readers(demo: Demo, marks: Marks) -> list[Reader]:
    task = {
        "path": str(demo.registry),
        "marks": str(marks.path),
        "live": [info.name for info in LIVE],
        "steady": demo.steady,
        "arriving": ARRIVING,
    }
    readers: list[Reader] = []
    for number in range(1, demo.readers + 1):
        readers.append(Reader(number, task, demo.folder))
        demo.stack.callback(readers[-1].close)
    return readers


def _note(demo: Demo, readers: list[Reader], updates: Updates) -> None:
    demo.facts["readers"] = [_reader_facts(reader) for reader in readers]
    demo.facts["reads_per_second"] = round(sum(rate(reader.total) for reader in readers))
    demo.facts["stale"] = sum(reader.total.stale for reader in readers)
    demo.facts["updates"] = {
        "acknowledged": len(updates.durations),
        "p50_ns": percentile(updates.durations, 0.50),
        "p99_ns": percentile(updates.durations, 0.99),
    }


def _reader_facts(reader: Reader) -> dict[str, Any]:
    total = reader.total
    return {
        "pid": reader.pid,
        "reads": total.reads,
        "reads_per_second": round(rate(total)),
        "p50_ns": percentile(total.samples, 0.50),
        "p99_ns": percentile(total.samples, 0.99),
        "revision": total.revision,
        "stale": total.stale,
        "error": total.error,
    }


def _tell(demo: Demo, readers: list[Reader]) -> None:
    if not demo.quiet:
        tables.print_table(COLUMNS, [row(reader, reader.total, reader.total.stale) for reader in readers])
    updates = demo.facts["updates"]
    demo.say(
        f"  together {demo.facts['reads_per_second']:,} reads/s, {demo.facts['stale']} stale, while"
        f" {updates['acknowledged']:,} updates were acknowledged:"
        f" p50 {duration(updates['p50_ns'])}, p99 {duration(updates['p99_ns'])}"
    )
    demo.say("  latencies are of single reads, sampled, with the clock's own cost in them\n")


def _failures(stale: int, readers: list[Reader], updates: Updates) -> list[str]:
    found = [f"{stale} reads were older than an update acknowledged before they began"] * bool(stale)
    found += [f"the client: {updates.error}"] * bool(updates.error)
    for reader in readers:
        if reader.total.error:
            found.append(f"reader {reader.number}: {reader.total.error}")
        elif not reader.total.reads:
            found.append(f"reader {reader.number} has read nothing")
    return found
