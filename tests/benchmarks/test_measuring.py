"""The benchmark suite measures what it says it measures. No test here decides on a timing."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import harness, markdown, report, rows_find, suite, workloads
from benchmarks.datasets import build, build_plain
from benchmarks.harness import Contender, Contest, Plan, Summary, compare
from benchmarks.rows import Bench
from benchmarks.stores import PEERS, Peer, registry_opening
from benchmarks.stores.baselines import HandWritten
from benchmarks.stores.by_hand import ByHand, captured
from benchmarks.stores.servers import Redis
from dspy_registry import ModuleInfo, Registry, RegistryWriter
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.codec import decode_info, encode
from dspy_registry.registry_store.validation import validate_module

pytestmark = pytest.mark.timeout(300)  # some measure whole rows

SIZE = 60


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), (6, SIZE), quick=True)


@pytest.fixture(scope="module")
def infos() -> list[ModuleInfo]:
    return list(workloads.modules(SIZE))


# Workload


def test_the_workload_is_the_same_in_every_run_and_valid(infos: list[ModuleInfo]) -> None:
    assert infos == list(workloads.modules(SIZE))
    assert [validate_module(info) for info in infos] == infos
    names = workloads.all_names(SIZE)
    assert names == [*workloads.CORE_NAMES, *(info.name for info in infos)]
    assert len(set(names)) == SIZE
    assert sum(workloads.SHARED_CAPABILITY in info.capabilities for info in infos) == len(infos) // 2


def test_a_smaller_workload_is_the_beginning_of_a_larger_one() -> None:
    larger = list(workloads.modules(40))
    assert list(workloads.modules(20)) == larger[:14]


def test_popular_capabilities_are_more_frequent() -> None:
    words = [word for info in workloads.modules(3_000) for word in info.capabilities]
    first, last = workloads.CAPABILITIES[0], workloads.CAPABILITIES[-1]
    assert words.count(first) > 10 * words.count(last)


# Stores


def readable(peer_type: type[Peer]) -> Peer:
    peer = peer_type()
    missing = peer.missing()
    if missing:
        pytest.skip(missing)
    return peer


@pytest.mark.parametrize("peer_type", PEERS, ids=[peer_type.key for peer_type in PEERS])
def test_every_store_returns_the_same_records(peer_type: type[Peer], infos: list[ModuleInfo], tmp_path: Path) -> None:
    peer = readable(peer_type)
    try:
        peer.start(tmp_path, [(info.name, encode(info)) for info in infos])
        with closing(peer.opening().open()) as store:
            assert [store.get(info.name) for info in infos] == infos
        assert peer.version()
    finally:
        peer.stop()


def test_ours_and_the_baselines_return_the_same_records(bench: Bench, infos: list[ModuleInfo]) -> None:
    with closing(registry_opening(bench.dataset(SIZE).path).open()) as registry:
        assert [registry.get_module(info.name) for info in infos] == infos
    with closing(HandWritten(bench.plain(SIZE).path)) as by_hand, closing(by_hand.held()) as held:
        for get in (by_hand.get, by_hand.get_checked, held.get):
            assert [get(info.name) for info in infos] == infos


def test_a_peer_sees_what_another_connection_has_changed(infos: list[ModuleInfo], tmp_path: Path) -> None:
    import sqlite3

    from benchmarks.stores.files import SQLite

    first, second = infos[:2]
    peer = SQLite()
    peer.start(tmp_path, [(first.name, encode(first))])
    with closing(peer.opening().open()) as store:
        assert store.get(first.name) == first
        with closing(sqlite3.connect(tmp_path / "modules.sqlite")) as other, other:
            other.execute("UPDATE module SET record = ?", (encode(second),))
        assert store.get(first.name) == second


def test_a_missing_redis_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    results = list(suite.run(suite.chosen(["peers_cached_redis"]), bench))
    (redis,) = [result for result in results if result.name == "peers_cached_redis"]
    assert (redis.figure, redis.reached) == (None, None)
    assert "redis-server" in redis.note
    assert "apt-get install" in redis.note
    assert Redis().missing() in redis.note
    assert redis.note.startswith("not measured: ")
    assert redis.note in markdown.figures_table([redis])
    assert redis.note in markdown.brief_table([redis])


# Writes by hand


def test_a_load_by_hand_writes_what_a_bulk_load_writes(infos: list[ModuleInfo], tmp_path: Path) -> None:
    with RegistryWriter(tmp_path / "registry"):
        pass
    shutil.copytree(tmp_path / "registry", tmp_path / "by-hand")
    (tmp_path / "empty").mkdir()
    with captured() as commits, RegistryWriter(tmp_path / "registry") as writer:
        writer.register_modules(infos)
    with closing(ByHand(tmp_path / "empty")) as by_hand:
        by_hand.load(infos, workloads.CORE_NAMES)
        for database in (layout.MODULES, layout.SEQUENCES):
            loaded = by_hand.contents(database)
            wanted = {key: value for name, key, value in commits[-1].puts if name == database}
            assert {key: len(value) for key, value in loaded.items()} == {
                key: len(value) for key, value in wanted.items()
            }
        assert [decode_info(value).info for value in by_hand.contents(layout.MODULES).values()] == sorted(
            infos, key=lambda info: info.name.encode()
        )
        terms = {key for name, key, _ in commits[-1].puts if name == layout.POSTINGS}
        assert set(by_hand.contents(layout.POSTINGS)) == terms


def test_a_commit_by_hand_leaves_the_same_data(infos: list[ModuleInfo], tmp_path: Path) -> None:
    build(tmp_path / "registry", 20)
    shutil.copytree(tmp_path / "registry", tmp_path / "by-hand")
    with captured() as commits, RegistryWriter(tmp_path / "registry") as writer:
        writer.register_module(infos[-1])
        writer.unregister_module(infos[0].name)
    with closing(ByHand(tmp_path / "by-hand")) as by_hand:
        for commit in commits:
            by_hand.commit(commit)
    with Registry(tmp_path / "registry") as ours, closing(ByHand(tmp_path / "by-hand")) as by_hand:
        assert len(by_hand.contents(layout.MODULES)) == len(ours) == 20
    with closing(ByHand(tmp_path / "registry")) as ours_again, closing(ByHand(tmp_path / "by-hand")) as by_hand:
        for database in layout.DATABASES:
            assert by_hand.contents(database) == ours_again.contents(database)


def test_the_plain_environment_holds_the_encoded_modules(tmp_path: Path) -> None:
    registry = build(tmp_path / "registry", 20)
    plain = build_plain(tmp_path / "plain", registry.path, 20)
    assert plain.names == registry.names
    assert plain.record_bytes == registry.record_bytes


# find


def test_find_agrees_with_sqlite(bench: Bench) -> None:
    results = {result.name: result for result in suite.run(suite.chosen(["find_uncached"]), bench)}
    assert results["find_uncached"].facts["most"] > 0
    assert not bench.failed


def test_disagreeing_stores_are_told() -> None:
    query = rows_find.Query(("a", "b"), "general", "low")
    with pytest.raises(RuntimeError):
        rows_find._agreed([query], [lambda *_, **__: ("x",), lambda *_, **__: ()])


# Harness


def test_percentiles_rise_and_are_values_that_were_measured() -> None:
    summary = harness.summarise("x", range(1, 10_001))
    assert summary == Summary("x", "ns", 10_000, 5_000, 9_000, 9_900, 9_990, 10_000)
    assert harness.summarise("x", [7.0]).p999 == 7.0
    with pytest.raises(ValueError):  # noqa: PT011  # its wording is nobody else's concern
        harness.summarise("x", [])


@pytest.mark.parametrize(("unit", "shown"), [("ns", "2 ns"), ("µs", "2 µs"), ("ms", "2 ms"), ("s", "2 s")])
def test_percentiles_are_shown_in_the_unit_of_their_values(unit: str, shown: str) -> None:
    summary = harness.summarise("x", [2.0], unit)
    assert {report.duration(value) for value in report.percentiles(summary)} == {shown}


def test_a_unit_that_nobody_can_convert_is_refused() -> None:
    with pytest.raises(ValueError, match="'min' is no unit of a duration: use one of ns, µs, ms, s"):
        harness.summarise("x", [2.0], "min")


def test_contenders_take_turns_and_are_asked_the_same() -> None:
    asked: dict[str, list[int]] = {"one": [], "two": []}
    order: list[str] = []

    def contender(label: str) -> Contender:
        def prepare() -> dict[str, object]:
            order.append(label)
            return {"store": asked[label]}

        return Contender(label, "store.append({})", prepare)

    contest = Contest([contender("one"), contender("two")], lambda turn: range(turn * 16, turn * 16 + 16), False)
    found = compare(contest, Plan(rounds=4))
    assert asked["one"] == asked["two"] == list(range(16 * 8))
    assert order == ["two", "two", "one", "one", "one", "one", "two", "two"] * 2
    assert [len(times) for times in found.medians.values()] == [4, 4]
    assert [len(times) for times in found.singles.values()] == [64, 64]


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    found = harness.Comparison({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 1.0]}, {})
    assert found.ratios("a", "b") == [2.0, 3.0, 4.0]
    assert found.ratio("a", "b") == 3.0


def test_arguments_that_do_not_fill_eight_are_refused() -> None:
    with pytest.raises(ValueError, match="8"):
        harness.chunked([1, 2], 8)
