"""New queries of several conditions, compared with SQLite."""

from __future__ import annotations

import random
import sqlite3
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.harness import Contender, Contest, clock_cost, summarise
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_uncached import Fresh
from benchmarks.stores import OURS
from benchmarks.stores.files import connect
from benchmarks.workloads import SEED, modules
from dspy_registry import ModuleInfo
from dspy_registry.registry_store.vocabulary import LEVELS

SIZE: Final = 100_000
QUERIES: Final = 200
SQLITE, DENORMALISED = "SQLite", "SQLite, denormalised"


class Query(NamedTuple):
    """Two capabilities, a pool, and the highest level of memory allowed."""

    capabilities: tuple[str, str]
    pool_type: str
    max_memory: str


def queries(infos: list[ModuleInfo], count: int) -> list[Query]:
    """Distinct queries. Each has the values of one module, so common values are asked for often."""
    draw = random.Random(SEED + 2)
    found: dict[Query, None] = {}
    several = [info for info in infos if len(info.capabilities) >= 2]
    for _ in range(20 * count):
        info = draw.choice(several)
        first, second = draw.sample(info.capabilities, 2)
        found[Query((first, second), info.pool_type, info.requirements.memory)] = None
        if len(found) == count:
            break
    return list(found)


_TABLES: Final = """
CREATE TABLE module (id INTEGER PRIMARY KEY, name TEXT UNIQUE, pool TEXT, memory INTEGER);
CREATE TABLE capability (word TEXT, module INTEGER, PRIMARY KEY (word, module)) WITHOUT ROWID;
CREATE TABLE capability_of (word TEXT, pool TEXT, memory INTEGER, module INTEGER,
    PRIMARY KEY (word, pool, memory, module)) WITHOUT ROWID;
"""
_INDEXES: Final = """
CREATE INDEX module_by_need ON module (pool, memory, id, name);
CREATE INDEX module_covering ON module (id, pool, memory, name);
ANALYZE;
"""
_JOIN: Final = """
SELECT m.name FROM capability a JOIN capability b ON b.module = a.module JOIN module m ON m.id = a.module
WHERE a.word = ? AND b.word = ? AND m.pool = ? AND m.memory <= ? ORDER BY a.module"""
_DENORMALISED: Final = """
SELECT m.name FROM capability_of a JOIN capability b ON b.module = a.module JOIN module m ON m.id = a.module
WHERE a.word = ? AND b.word = ? AND a.pool = ? AND a.memory <= ? ORDER BY a.module"""


def fill(path: Path, infos: list[ModuleInfo]) -> None:
    """The modules in tables, with all indexes that made queries faster."""
    level = {word: rank for rank, word in enumerate(LEVELS)}
    with closing(connect(path)) as connection:
        connection.executescript(_TABLES)
        connection.execute("BEGIN")
        for number, info in enumerate(infos):
            needs = (info.pool_type, level[info.requirements.memory])
            connection.execute("INSERT INTO module VALUES (?, ?, ?, ?)", (number, info.name, *needs))
            words = info.capabilities
            rows = [(word, *needs, number) for word in words]
            connection.executemany("INSERT INTO capability_of VALUES (?, ?, ?, ?)", rows)
            connection.executemany("INSERT INTO capability VALUES (?, ?)", [(word, number) for word in words])
        connection.execute("COMMIT")
        connection.executescript(_INDEXES)


class Tables:
    """`find` in SQL: one prepared statement, names in order of registration."""

    def __init__(self, connection: sqlite3.Connection, statement: str) -> None:
        self._execute = connection.cursor().execute
        self._statement = statement
        self._level = {word: rank for rank, word in enumerate(LEVELS)}

    def find(self, capabilities: tuple[str, str], pool_type: str, max_memory: str) -> tuple[str, ...]:
        rows = self._execute(self._statement, (*capabilities, pool_type, self._level[max_memory]))
        return tuple([name for (name,) in rows])


_CALL: Final = "store.find(capabilities={}[0], pool_type={}[1], max_memory={}[2])"


def contest(bench: Bench, stack: ExitStack) -> Contest:
    """A fresh registry, and SQLite with two schemas. Every query is new."""
    size = bench.upto(SIZE)
    infos = list(modules(size))
    asked = queries(infos, 40 if bench.quick else QUERIES)
    database = bench.scratch("find") / "modules.sqlite"
    fill(database, infos)
    connection = stack.enter_context(closing(connect(database)))
    return Contest(
        [
            Contender(OURS, _CALL, Fresh(bench.dataset(size).path, stack)),
            Contender(SQLITE, _CALL, partial(dict, store=Tables(connection, _JOIN))),
            Contender(DENORMALISED, _CALL, partial(dict, store=Tables(connection, _DENORMALISED))),
        ],
        lambda _turn: asked,
        repeatable=False,
    )


def _find(bench: Bench) -> Iterator[Result]:
    title = "find with two capabilities, a pool and a memory bound"
    rounds = 3 if bench.quick else 9
    tick = bench.ticker(title, rounds)
    with ExitStack() as stack:
        made = contest(bench, stack)
        asked = made.asked(made.contenders[0], 0)
        sizes = _agreed(asked, [contender.namespace()["store"].find for contender in made.contenders])
        found = _rounds(made.contenders, asked, rounds, tick)
    facts = {"names found, median": sizes[len(sizes) // 2], "most": sizes[-1]}
    yield from _results(title, found, facts, bench.upto(SIZE))


def _agreed(asked: Sequence[Query], finds: list[Callable[..., tuple[str, ...]]]) -> list[int]:
    """How many names each query finds, sorted. Raises RuntimeError when two stores give different answers."""
    found = []
    for query in asked:
        answers = {tuple(find(query.capabilities, pool_type=query[1], max_memory=query[2])) for find in finds}
        if len(answers) != 1:
            raise RuntimeError(f"the stores answer differently to {query}")
        found.append(len(answers.pop()))
    return sorted(found)


def _rounds(
    contenders: Sequence[Contender], asked: Sequence[Query], rounds: int, tick: Callable[[], None]
) -> dict[str, list[list[float]]]:
    cost = clock_cost()
    found: dict[str, list[list[float]]] = {contender.label: [] for contender in contenders}
    for turn in range(rounds):
        for contender in contenders if turn % 2 else reversed(contenders):
            found[contender.label].append([single - cost for single in contender.singles(asked)])
        tick()
    return found


def _results(title: str, found: dict[str, list[list[float]]], facts: dict[str, Any], size: int) -> Iterator[Result]:
    typical = {label: [statistics.median(times) for times in rounds] for label, rounds in found.items()}
    summaries = [summarise(label, [time for times in rounds for time in times]) for label, rounds in found.items()]
    for label, name, limit, how in (
        (SQLITE, "find_uncached", 5.0, "with the best indexes and a join"),
        (DENORMALISED, "find_uncached_denormalised", None, "with pool and memory copied beside each capability"),
    ):
        ratios = [theirs / ours for theirs, ours in zip(typical[label], typical[OURS], strict=True)]
        both = sum(map(sum, found[label])) / sum(map(sum, found[OURS]))
        yield Result(
            name,
            f"{title}, against {label}",
            "at least",
            limit,
            statistics.median(ratios),
            note=f"times as quick as SQLite {how}; a typical new query, {size:,} modules",
            rounds=ratios,
            summaries=summaries if limit else [],
            facts={**facts, "all queries together, times as quick": round(both, 2)},
        )


ROWS: Final = (Row("find_uncached", ("find_uncached", "find_uncached_denormalised"), 15, _find),)
