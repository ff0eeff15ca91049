"""What readers make of usage: durations and timeouts that rest on it, its cost, and the table of the command line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import InvalidArgumentError, ModuleInfo, Registry, RegistryWriter, Requirements
from dspy_registry.cli.stats import sparkline
from dspy_registry.readers.queries import Queries
from dspy_registry.readers.routing import size_factor
from dspy_registry.registry_store.usage import SIZES, VersionUsage, size_class
from tests.support.command import answer, daemon, refusal, run, run_process
from tests.support.usage_helpers import NOW, batches, merge

FUTURE = 4 * NOW
"""Later than any record of a test was written."""
LARGE = 5000
ENOUGH = 20


@pytest.fixture
def writer(seeded_registry: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(seeded_registry) as writer:
        yield writer


@pytest.fixture(params=["registry", "snapshot"])
def queries(request: pytest.FixtureRequest, seeded_registry: Path, writer: RegistryWriter) -> Iterator[Queries]:
    """Both kinds of reader, after 20 calls of ChainOfThought with a large input and 19 with one of unknown size."""
    calls = [("dspy.ChainOfThought", 400.0 + at, True, LARGE) for at in range(ENOUGH)]
    fewer = [("dspy.ChainOfThought", 100.0)] * (ENOUGH - 1)
    merge(writer, batches([*calls, *fewer], now=FUTURE), now=FUTURE)
    with Registry(seeded_registry) as registry:
        if request.param == "registry":
            yield registry
        else:
            with registry.snapshot() as snapshot:
                yield snapshot


def test_declared_is_the_default_whatever_was_observed(queries: Queries) -> None:
    assert [queries.estimate_duration("dspy.ChainOfThought", size) for size in SIZES] == [1500, 3000, 6000, 15000]
    assert queries.estimate_duration("dspy.ChainOfThought", "large", basis="declared") == 6000
    recommended = queries.routing_recommendation("dspy.ChainOfThought", input_size=LARGE)
    assert recommended == queries.routing_recommendation("dspy.ChainOfThought", input_size=LARGE, basis="declared")
    assert recommended.timeout == 5400


@pytest.mark.parametrize("basis", ["observed", "auto"])
def test_enough_calls_of_a_size_stand_in_for_what_is_declared(queries: Queries, basis: str) -> None:
    assert queries.estimate_duration("dspy.ChainOfThought", "large", basis) == pytest.approx(409, rel=0.02)
    assert queries.estimate_duration("dspy.ChainOfThought", "normal", basis) == 3000
    assert queries.estimate_duration("dspy.ReAct", "small", basis) == 2500


@pytest.mark.parametrize("basis", ["observed", "auto"])
def test_the_timeout_is_from_the_99th_percentile_and_the_longest_of_the_last(queries: Queries, basis: str) -> None:
    large = queries.routing_recommendation("ChainOfThought", input_size=LARGE, optimize_latency=True, basis=basis)
    declared = queries.routing_recommendation("ChainOfThought", input_size=LARGE, optimize_latency=True)
    # 1.5 x the longest of the last is above 1.2 x the percentile; no limit on `auto` is below the declared one.
    assert large.timeout == (declared.timeout if basis == "auto" else math.ceil(419 * 1.5))
    assert large.timeout_seconds == large.timeout / 1000
    assert large.estimated_cost == pytest.approx(2 * 0.409, rel=0.02)
    assert (large.pool_type, large.prefer_native) == (declared.pool_type, declared.prefer_native)
    unknown = queries.routing_recommendation("dspy.ChainOfThought", basis=basis)
    assert unknown == queries.routing_recommendation("dspy.ChainOfThought")


def test_another_basis_is_refused(queries: Queries) -> None:
    for wrong in ("guessed", "", "Declared"):
        with pytest.raises(InvalidArgumentError):
            queries.estimate_duration("dspy.Predict", basis=wrong)
        with pytest.raises(InvalidArgumentError):
            queries.routing_recommendation("dspy.Predict", basis=wrong)
    with pytest.raises(InvalidArgumentError):
        queries.estimate_duration("dspy.Predict", "huge", basis="observed")
    with pytest.raises(KeyError):
        queries.estimate_duration("dspy.Nothing", basis="observed")


def test_how_many_calls_are_enough_is_an_option(seeded_registry: Path, writer: RegistryWriter) -> None:
    merge(writer, batches([("dspy.Predict", 50.0)] * 3))
    for enough, expected in ((3, 50), (4, 1000)):
        with Registry(seeded_registry, min_observed_calls=enough) as registry, registry.snapshot() as snapshot:
            for queries in (registry, snapshot):
                assert queries.estimate_duration("dspy.Predict", basis="observed") == pytest.approx(expected, rel=0.02)


def test_a_new_version_begins_without_the_statistics_of_the_old(seeded_registry: Path, writer: RegistryWriter) -> None:
    writer.register_module(ModuleInfo("acme.New", estimated_duration=700))
    merge(writer, batches([("acme.New", 50.0)] * ENOUGH, now=FUTURE), now=FUTURE)
    with Registry(seeded_registry) as registry:
        assert registry.estimate_duration("acme.New", basis="auto") == pytest.approx(50, rel=0.02)
        writer.register_module(ModuleInfo("acme.New", estimated_duration=10_000))
        for basis in ("observed", "auto"):
            assert registry.estimate_duration("acme.New", basis=basis) == 10_000
            assert registry.routing_recommendation("acme.New", basis=basis).timeout == 12_000
        assert registry.usage("acme.New").calls == registry.usage("acme.New", 1).calls == ENOUGH
        assert registry.usage("acme.New", 2) == VersionUsage("acme.New", 2)


@pytest.mark.parametrize("wrong", [0, -1, True, "1", 1.0, 2**40])
def test_usage_of_what_is_no_version_is_refused(seeded_registry: Path, wrong: Any) -> None:
    with Registry(seeded_registry) as registry, pytest.raises(InvalidArgumentError, match="version"):
        registry.usage("dspy.Predict", wrong)


def test_an_observed_cost_is_reported_on_any_basis(seeded_registry: Path, writer: RegistryWriter) -> None:
    metadata = {"cost_usd_per_call": 0.5}
    writer.register_module(ModuleInfo("acme.Paid", requirements=Requirements(compute="high"), metadata=metadata))
    with Registry(seeded_registry) as registry:
        before = registry.routing_recommendation("acme.Paid")
        assert (before.declared_cost_usd, before.observed_cost_usd) == (0.5, None)
        for number in (1, 2, 3):
            merge(
                writer,
                batches([("acme.Paid", 1.0, True, None, 0, 0, 0.25 * number)], reporter=b"r" * 16, number=number),
            )
            for basis in ("declared", "observed", "auto"):
                recommended = registry.routing_recommendation("Paid", basis=basis)
                assert recommended.observed_cost_usd == pytest.approx(0.25 * (number + 1) / 2)
                assert recommended.declared_cost_usd == 0.5
        with registry.snapshot() as snapshot:
            merge(writer, batches([("acme.Paid", 1.0, True, None, 0, 0, 9.0)]))
            assert snapshot.routing_recommendation("acme.Paid").observed_cost_usd == pytest.approx(0.5)
            assert snapshot.usage("acme.Paid").calls == 3
        assert registry.usage("acme.Paid").calls == 4


def test_the_sizes_are_those_of_the_routing_timeout() -> None:
    assert [size_class(size) for size in (None, 0, 100, 101, 1000, 1001, 10_000, 10_001)] == [
        *("normal", "small", "small", "normal", "normal", "large", "large", "very_large")
    ]
    factors = {"small": 1.0, "normal": 1.0, "large": 1.5, "very_large": 3.0}
    for size in (None, 0, 100, 101, 1000, 1001, 10_000, 10_001, 10**9):
        assert size_factor(size) == factors[size_class(size)]


def test_usage_is_read_anew_from_a_registry_put_in_place_of_another(tmp_path: Path) -> None:
    paths = tmp_path / "here", tmp_path / "other"
    for calls, path in enumerate(paths, 1):
        with RegistryWriter(path) as writer:
            merge(writer, batches([("dspy.Predict", 1.0, True, None, 0, 0, 0.5)] * calls))
    with Registry(paths[0]) as registry:
        assert registry.usage("dspy.Predict").calls == 1
        paths[0].rename(tmp_path / "gone")
        paths[1].rename(paths[0])
        with registry.snapshot():  # looks at once whether it is still the same
            pass
        assert registry.usage("dspy.Predict").calls == 2
        assert registry.usages()[0].calls == 2


# The command line


def test_stats_is_a_table_most_used_first(writer: RegistryWriter) -> None:
    merge(writer, batches([("dspy.ReAct", 5.0, False)] + [("dspy.Predict", 20.0, True, None, 7, 3, 0.5)] * 3))
    done = run("stats")
    assert (done.returncode, done.stderr) == (0, "")
    head, first, second = done.stdout.splitlines()
    assert head.split()[:4] == ["NAME", "CALLS", "ERRORS", "FAILING"]
    assert first.split()[:7] == ["dspy.Predict", "3", "0", "0.0%", "20", "20", "20"]
    assert second.split()[:7] == ["dspy.ReAct", "1", "1", "100.0%", "-", "-", "-"]  # none succeeded
    assert [line.split()[0] for line in run("stats", "-n", "1").stdout.splitlines()] == ["NAME", "dspy.Predict"]


def test_route_takes_the_basis(writer: RegistryWriter) -> None:
    merge(writer, batches([("dspy.Predict", 100.0)] * ENOUGH))
    assert answer("route", "Predict")["timeout"] == 1200
    assert answer("route", "Predict", "--basis", "observed")["timeout"] == 150
    assert run("route", "Predict", "--basis", "guessed").returncode == 2


def test_stats_of_named_modules(writer: RegistryWriter) -> None:
    merge(writer, batches([("dspy.Predict", 20.0)] * 3))
    assert [row["name"] for row in answer("stats", "ReAct", "predict")["usage"]] == ["dspy.Predict", "dspy.ReAct"]
    assert refusal("stats", "nothing")[0] == 1


def test_stats_as_json(writer: RegistryWriter) -> None:
    merge(writer, batches([("dspy.Predict", 20.0, True, LARGE, 7, 3, 0.5), ("dspy.Predict", 1.0, False)]))
    (row,) = answer("stats")["usage"]
    assert (row["name"], row["calls"], row["errors"], row["error_rate"]) == ("dspy.Predict", 2, 1, 0.5)
    assert (row["tokens_in"], row["tokens_out"], row["cost_usd_per_call"]) == (7, 3, 0.5)
    assert row["durations"]["large"]["calls"] == row["overall"]["calls"] == 1
    assert (len(row["calls_by_minute"]), len(row["calls_by_hour"])) == (60, 48)


def test_stats_tells_how_calls_failed(writer: RegistryWriter) -> None:
    for number, kind in enumerate(("timeout", "rate_limited", "cancelled"), 1):
        merge(writer, batches([("dspy.Predict", 20.0)] * number, error=kind))
    (row,) = answer("stats")["usage"]
    assert (row["calls"], row["errors"], row["errors_by_minute"], row["errors_by_hour"]) == (3, 3, [0] * 60, [0] * 48)
    kinds = {kind: count for kind, count in row["calls_by_kind"].items() if count}
    assert kinds == {"timeout": 1, "rate_limited": 2, "cancelled": 3}
    assert "rate_limited 2, timeout 1" in run("stats", "Predict").stdout


def test_stats_of_a_version(writer: RegistryWriter) -> None:
    merge(writer, batches([("dspy.Predict", 20.0)] * 3 + [("dspy.Predict", 1.0, False)]))
    version = answer("stats", "predict", "--version", "1")
    assert (version["name"], version["version"], version["calls"], version["errors"]) == ("dspy.Predict", 1, 4, 1)
    assert version["standing"]["normal"]["completed"] == 3
    assert sum(version["evaluated_by_minute"]) == 0, "that was in another hour"
    lines = run("stats", "predict", "--version", "1").stdout.splitlines()
    assert lines[-1].split()[:3] == ["normal", "3", "20"]
    assert answer("stats", "predict", "--version", "7")["calls"] == 0
    assert run("stats", "--version", "1").returncode == 2
    assert run("stats", "nothing", "--version", "1").returncode == 1


def test_stats_are_reset(writer: RegistryWriter, seeded_registry: Path) -> None:
    merge(writer, batches([("dspy.Predict", 20.0), ("dspy.ReAct", 20.0)]))
    writer.close()
    assert run("stats", "reset", "--embedded", "predict", "--version", "1").returncode == 0
    assert (answer("stats", "Predict", "--version", "1")["calls"], answer("stats", "Predict")["usage"][0]["calls"]) == (
        0,
        1,
    )
    assert answer("stats", "reset", "--embedded", "predict") == {"name": "predict", "version": None}
    assert [row["name"] for row in answer("stats", "show")["usage"]] == ["dspy.ReAct"]
    assert refusal("stats", "reset", "--embedded", "nothing")[0] == 1
    with daemon(seeded_registry):
        assert run("stats", "reset", "dspy.ReAct").returncode == 0
        assert answer("stats")["usage"] == []


def test_stats_when_nothing_was_reported(seeded_registry: Path) -> None:
    done = run("stats")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no calls were reported\n")
    assert answer("stats") == {"calls_lost": 0, "usage": []}


def test_a_sparkline_draws_every_count() -> None:
    assert sparkline([0, 1, 50, 80, 100]) == ".▁▄▇█"
    assert sparkline([3] * 3) == "███"
    assert sparkline([0, 0]) == ".."
    assert sparkline([]) == ""


def test_a_sparkline_is_plain_where_blocks_cannot_be_printed(writer: RegistryWriter) -> None:
    merge(writer, batches([("dspy.Predict", 20.0)]))
    done = run_process("stats", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.isascii()
