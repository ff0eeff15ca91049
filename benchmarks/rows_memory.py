"""Memory and start-up time of a reader process, and the size of the file."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from benchmarks.probes import holding, kibibytes, probe
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_sizes import label_of
from benchmarks.stores.by_hand import ByHand
from benchmarks.workloads import shuffled
from dspy_registry.registry_store import layout

RANDOM_READS: Final = 100_000
MIB: Final = 1024 * 1024
OF_OTHERS: Final = (
    "lmdb,msgspec,pathlib,threading,weakref,mmap,struct,graphlib,unicodedata,isal.isal_zlib,pyroaring,bisect,fcntl"
)
"""What readers import of others."""
PROCESSES: Final = (1, 2, 4, 8)
HELD: Final = 100_000
FILE: Final = 2.1
"""Of the encoded modules. Beside that a record holds 35 bytes; keys and the order hold the name; postings take 34."""


def _memory(bench: Bench) -> Iterator[Result]:
    title = f"memory of one more reader after {RANDOM_READS:,} random reads"
    smallest, largest = min(bench.sizes), bench.largest
    rounds = 1 if bench.quick else 3
    tick = bench.ticker(title, rounds)
    used: dict[int, list[float]] = {smallest: [], largest: []}
    for _ in range(rounds):
        for size, found in used.items():
            asked = _asked(bench, size)
            found.append(probe("memory", str(bench.dataset(size).path), str(asked)) / MIB)
        tick()
    yield Result(
        "reader_memory",
        title,
        "at most",
        16,
        statistics.median(used[largest]) - statistics.median(used[smallest]),
        unit="MiB",
        note=f"more than with {label_of(smallest)}; {label_of(largest)}, `Anonymous` of smaps_rollup",
        facts={f"{label_of(size)}, MiB": round(statistics.median(found), 1) for size, found in used.items()},
    )


def _asked(bench: Bench, size: int) -> Path:
    """A file with one name per line. A list of names in the reader would add to the memory that is measured."""
    names = bench.dataset(size).names
    reads = RANDOM_READS // 20 if bench.quick else RANDOM_READS
    order = shuffled(names)
    file = bench.folder / f"asked-{size}.txt"
    file.write_text("".join(f"{order[number % len(order)]}\n" for number in range(reads)), encoding="utf-8")
    return file


def _processes(bench: Bench) -> Iterator[Result]:
    """Proportional set size of all readers together. A page that eight readers share counts once."""
    size = bench.upto(HELD)
    counts = PROCESSES[:2] if bench.quick else PROCESSES
    asked = _asked(bench, size)
    manners = {
        "registry": ("hold-registry", str(bench.dataset(size).path), str(asked)),
        "a dict in each process": ("hold-dict", str(bench.plain(size).path)),
    }
    tick = bench.ticker("memory by number of processes", len(manners))
    used = {}
    for label, arguments in manners.items():
        used[label] = _growth(counts, arguments)
        tick()
    shared, copied = used["registry"], used["a dict in each process"]
    yield Result(
        "memory_by_processes",
        f"memory of {counts[-1]} readers together, {label_of(size)}",
        "at most",
        None,
        shared[counts[-1]] / copied[counts[-1]],
        note="times that of a dict in each process; `Pss` of smaps_rollup",
        facts={"size": size, "MiB": used},
    )


def _growth(counts: tuple[int, ...], arguments: tuple[str, ...]) -> dict[int, float]:
    """MiB of all processes together, by number of processes."""
    found = {}
    with ExitStack() as stack:
        pids: list[int] = []
        for count in counts:
            while len(pids) < count:
                pids.append(stack.enter_context(holding(*arguments)))
            found[count] = round(sum(kibibytes(pid, "Pss") for pid in pids) / 1024, 1)
    return found


def _imports(bench: Bench) -> Iterator[Result]:
    title = "from dspy_registry import Registry"
    rounds = 3 if bench.quick else 15
    tick = bench.ticker(title, rounds)
    ours, least, others, differences = [], [], [], []
    for turn in range(rounds):
        first = probe("imports", "dspy_registry.readers.registry") if turn % 2 else 0.0
        least.append(probe("imports", "lmdb,msgspec"))
        others.append(probe("imports", OF_OTHERS))
        ours.append(first or probe("imports", "dspy_registry.readers.registry"))
        differences.append((ours[-1] - least[-1]) / 1e6)
        tick()
    yield Result(
        "import_time",
        title,
        "at most",
        60,
        statistics.median(differences),
        unit="ms",
        note="more than `import lmdb, msgspec`; in fresh processes",
        rounds=differences,
        facts={
            "readers, ms": round(statistics.median(ours) / 1e6, 1),
            "lmdb and msgspec, ms": round(statistics.median(least) / 1e6, 1),
            "what the readers import of others, ms": round(statistics.median(others) / 1e6, 1),
        },
    )


def _file_size(bench: Bench) -> Iterator[Result]:
    dataset = bench.dataset(bench.largest)
    with closing(ByHand(dataset.path)) as by_hand:
        parts = {name.decode(): by_hand.bytes_of(name) for name in layout.DATABASES}
    yield Result(
        "file_size",
        f"file of {label_of(bench.largest)} after a bulk load",
        "at most",
        FILE,
        dataset.file_bytes / dataset.record_bytes,
        note="times the encoded modules; what the registry itself adds to each module is not in those",
        facts={"file, bytes": dataset.file_bytes, "records, bytes": dataset.record_bytes, "pages of, bytes": parts},
    )


ROWS: Final = (
    Row("reader_memory", ("reader_memory",), 5, _memory),
    Row("memory_by_processes", ("memory_by_processes",), 12, _processes),
    Row("import_time", ("import_time",), 5, _imports),
    Row("file_size", ("file_size",), 0.1, _file_size),
)
