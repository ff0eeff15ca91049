"""Compiled programs: from publish to live in every worker, a repeated look-up, and what programs cost those without."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import Contender, Contest, compare, percentile, summarise
from benchmarks.probes import probe
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_concurrent import copied
from benchmarks.serving import serving
from benchmarks.stores import OURS
from benchmarks.workloads import shuffled
from dspy_registry import Registry, RegistryWriter, WriterClient
from dspy_registry.registry_store.program_document import ProgramDocument, digest_of, encode_document
from dspy_registry.writer.programs import Publication

SIZE: Final = 1_000
MIB: Final = 1024 * 1024
WORKERS: Final = 8
QUIET: Final = 3.0  # seconds before the first publication, and between two
PROGRAMS: Final = 1_000
PROGRAM_BYTES: Final = 100 * 1024


def _live(bench: Bench) -> Iterator[Result]:
    """Workers answer all the while, each at its pace."""
    from benchmarks import serving_program
    from dspy_registry.integrations.dspy import publish

    workers, rounds = (2, 2) if bench.quick else (WORKERS, 15)
    path = copied(bench, bench.upto(SIZE), "programs")
    tick = bench.ticker("a program published to live", rounds)
    published: dict[str, float] = {}
    with ExitStack() as stack:
        stack.enter_context(serving(path))
        client = stack.enter_context(WriterClient(path, timeout=60))
        send = partial(publish, name=serving_program.NAME, client=client, label="live")
        send(serving_program.program("the first", MIB))
        processes = [_worker(path, stack) for _ in range(workers)]
        for number in range(rounds):
            time.sleep(QUIET)
            made = serving_program.program(f"number {number}", MIB)
            published[f"number {number}"] = time.monotonic()
            send(made)
            tick()
        time.sleep(QUIET)
        told: list[dict[str, Any]] = [json.loads(process.communicate()[0]) for process in processes]
    delays = [1000 * (max(each["seen"][mark] for each in told) - at) for mark, at in published.items()]
    yield Result(
        "program_live",
        f"a program of 1 MiB, published to live in {workers} workers that keep answering",
        "at most",
        150,
        statistics.median(delays),
        unit="ms",
        note="from the call of `publish` to the first answer with it in the last worker",
        rounds=delays,
        summaries=[summarise("publish to live", delays, "ms")],
    )
    before, during = _answers(told, published)
    yield Result(
        "program_live_p99",
        "p99 of their answers while programs are published",
        "at most",
        1.5,
        percentile(sorted(during), 0.99) / percentile(sorted(before), 0.99),
        note="times that of the seconds before",
        summaries=[summarise("before", before, "ms"), summarise("while programs are published", during, "ms")],
    )


def _worker(path: Path, stack: ExitStack) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.serving_program", str(path)]
    process = stack.enter_context(
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
        )
    )
    if process.stdout is None or not process.stdout.readline():
        raise RuntimeError(f"{' '.join(command)} failed")
    return process


def _answers(told: list[dict[str, Any]], published: dict[str, float]) -> tuple[list[float], list[float]]:
    """Milliseconds of each answer: those of the quiet seconds, and those of the second after each publication."""
    before: list[float] = []
    during: list[float] = []
    for each in told:
        for began, taken in each["answers"]:
            is_near = any(at - 0.5 <= began < at + 1.0 for at in published.values())
            (during if is_near else before).append(1000 * taken)
    return before, during


def _get(bench: Bench) -> Iterator[Result]:
    """Both versions are built before the clock starts."""
    from benchmarks import serving_program
    from dspy_registry import Programs
    from dspy_registry.integrations.dspy import publish

    path = copied(bench, bench.upto(SIZE), "programs-get")
    with RegistryWriter(path) as writer, Registry(path) as registry:
        versions = [
            publish(serving_program.program(mark, 0), serving_program.NAME, client=writer, label="live").version
            for mark in ("one", "two")
        ]
        writer.set_label(serving_program.NAME, "live", dict.fromkeys(versions, 50))
        programs = Programs(registry, serving_program.ALLOW)
        for version in versions:
            programs[f"{serving_program.NAME}@{version}"]
        keys = [f"user-{number}" for number in range(64)]
        while any(programs.get(serving_program.LIVE, key=key) is None for key in keys) or programs._builds:
            time.sleep(0.01)
        for key in keys:
            programs.get(serving_program.LIVE, key=key)
        contender = Contender(OURS, f"store.get({serving_program.LIVE!r}, key={{}})", partial(dict, store=programs))
        found = compare(Contest([contender], lambda _turn: keys * 16), bench.plan, bench.ticker("programs.get", 15))
    times = [taken / 1000 for taken in found.medians[OURS]]
    yield Result(
        "program_get",
        "programs.get of a weighted label, by key, repeated",
        "at most",
        3,
        statistics.median(times),
        unit="µs",
        rounds=times,
        summaries=found.summaries(),
    )


def _beside(bench: Bench) -> Iterator[Result]:
    """The same registry with and without programs, read by a process that uses none."""
    count = 50 if bench.quick else PROGRAMS
    plain = copied(bench, bench.upto(SIZE), "programs-none")
    full = copied(bench, bench.upto(SIZE), "programs-many")
    _fill(full, count)
    names = shuffled(bench.dataset(bench.upto(SIZE)).names)
    with Registry(full) as ours, Registry(plain) as other:
        contenders = [
            Contender(OURS, "store.get_module({})", partial(dict, store=ours)),
            Contender("without programs", "store.get_module({})", partial(dict, store=other)),
        ]
        asked = (names[:64] * 64)[:1024]
        found = compare(Contest(contenders, lambda _turn: asked), bench.plan, bench.ticker("reads beside programs", 15))
    title = f"of a registry with {count:,} programs of 100 KiB"
    yield Result(
        "programs_cached_read",
        f"a repeated read {title}",
        "at most",
        1.05,
        found.ratio(OURS, "without programs"),
        note="times the same read without programs",
        rounds=found.ratios(OURS, "without programs"),
    )
    attached = _attached((full, plain), names[0], 3 if bench.quick else 31)
    yield Result(
        "programs_attach",
        f"attach to the first answer {title}",
        "at most",
        1.1,
        statistics.median(attached[full]) / statistics.median(attached[plain]),
        note="times the same without programs",
        rounds=[one / other for one, other in zip(attached[full], attached[plain], strict=True)],
    )
    file = bench.folder / "programs-asked.txt"
    file.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    used = {path: [probe("memory", str(path), str(file)) / MIB for _ in range(3)] for path in (full, plain)}
    yield Result(
        "programs_memory",
        f"memory of a reader {title}",
        "at most",
        1,
        abs(statistics.median(used[full]) - statistics.median(used[plain])),
        unit="MiB",
        note="more or less than without programs; `Anonymous` of smaps_rollup",
    )


def _attached(paths: tuple[Path, ...], name: str, rounds: int) -> dict[Path, list[float]]:
    """Nanoseconds of each attach, in turns: the machine changes its speed, and one registry was just written."""
    times: dict[Path, list[float]] = {path: [] for path in paths}
    for turn in range(rounds):
        for path in paths if turn % 2 else reversed(paths):
            times[path].append(probe("attach", str(path), name))
    return times


def _fill(path: Path, count: int) -> None:
    """A program for each of as many new modules."""
    import msgspec

    with RegistryWriter(path) as writer:
        for number in range(count):
            state = msgspec.json.encode({"number": number, "filling": "x" * PROGRAM_BYTES})
            document = encode_document(
                ProgramDocument(
                    class_path="acme:Qa", origin="acme:Qa", dspy_version="3", predictors=(), state=msgspec.Raw(state)
                )
            )
            writer.publish_program(Publication(f"acme.programs.M{number}", digest_of(document)), document)


ROWS: Final = (
    Row("program_live", ("program_live", "program_live_p99"), 60, _live),
    Row("program_get", ("program_get",), 5, _get),
    Row("programs_beside", ("programs_cached_read", "programs_attach", "programs_memory"), 15, _beside),
)
