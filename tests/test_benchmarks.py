"""The benchmark suite measures what it says it measures. No test here decides on a timing."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import harness, machine, markdown, publish, report, rows_find, suite, workloads
from benchmarks.charts import CHARTS
from benchmarks.datasets import build, build_plain
from benchmarks.harness import Contender, Contest, Plan, Summary, compare
from benchmarks.rows import Bench, Result
from benchmarks.stores import PEERS, Peer, registry_opening
from benchmarks.stores.baselines import HandWritten
from benchmarks.stores.by_hand import ByHand, captured
from benchmarks.stores.servers import Redis
from readers import Registry
from registry_store import ModuleInfo, layout
from registry_store.codec import decode_info, encode
from registry_store.validation import validate_module
from writer import RegistryWriter

pytestmark = pytest.mark.timeout(300)  # one of the fixtures measures every row

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
    with pytest.raises(RuntimeError, match="differently"):
        rows_find._agreed([query], [lambda *_, **__: ("x",), lambda *_, **__: ()])


# Harness


def test_percentiles_rise_and_are_values_that_were_measured() -> None:
    summary = harness.summarise("x", range(1, 10_001))
    assert summary == Summary("x", "ns", 10_000, 5_000, 9_000, 9_900, 9_990, 10_000)
    assert harness.summarise("x", [7.0]).p999 == 7.0
    with pytest.raises(ValueError, match="nothing was measured"):
        harness.summarise("x", [])


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
    with pytest.raises(ValueError, match="at least 8"):
        harness.chunked([1, 2], 8)


# The command


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("run") / "run.json"
    assert command.main(["--quick", "--sizes", f"6,{SIZE}", "--json", str(file)]) == 0
    return file


def test_a_run_reports_every_row(document: Path) -> None:
    run = json.loads(document.read_bytes())
    assert [result["name"] for result in run["results"]] == list(suite.RESULT_NAMES)
    assert {"processor", "python", "packages", "liblmdb", "file system"} <= set(run["machine"])
    for result in run["results"]:
        assert result["figure"] is not None or "not measured" in result["note"]
        assert result["figure"] is None or result["figure"] > 0 or result["unit"] != "x"


def test_the_raw_output_repeats_what_each_figure_says(document: Path) -> None:
    written = json.loads(document.read_bytes())["results"]
    judged = report.load(document).results
    assert [(each["reached"], each["target"]) for each in written] == [(each.reached, each.target) for each in judged]
    assert {each.reached for each in judged} >= {True, None}


def test_statistics_drop_no_cached_record(document: Path) -> None:
    found = report.load(document).result("usage_dropped")
    assert found is not None
    assert found.facts["calls"] > 0
    assert (found.figure, found.facts["revisions"]) == (0, 0)


def test_percentiles_of_a_run_rise(document: Path) -> None:
    summaries = [summary for result in report.load(document).results for summary in result.summaries]
    assert len(summaries) > 20
    for summary in summaries:
        told = report.percentiles(summary)
        assert list(told) == sorted(told)
        assert summary.count > 0


def committed(document: Path) -> report.Report:
    run = report.load(document)
    run.machine["commit"] = "0123456789ab"
    return run


def test_a_run_is_drawn_and_put_between_the_markers(document: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{publish.BEGIN}\nold\n{publish.END}\nafter\n", encoding="utf-8")
    publish.publish(committed(document), tmp_path)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{publish.BEGIN}\n")
    assert text.endswith(f"{publish.END}\nafter\n")
    assert "old" not in text
    charts = tmp_path / "benchmarks" / "results"
    names = {chart.name for chart in charts.iterdir()}
    assert names == {f"{name}.{kind}" for name, _, _ in CHARTS for kind in ("svg", "png")}
    assert all(f"benchmarks/results/{name}.svg" in text for name, _, _ in CHARTS)
    before = {chart.name: chart.read_bytes() for chart in charts.iterdir()}
    publish.publish(committed(document), tmp_path)
    assert readme.read_text(encoding="utf-8") == text
    assert {chart.name: chart.read_bytes() for chart in charts.iterdir()} == before


@pytest.mark.parametrize("commit", [None, "0123456789ab-dirty"])
def test_what_no_commit_holds_is_not_published(
    document: Path,
    tmp_path: Path,
    commit: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = committed(document)
    run.machine["commit"] = commit
    page = tmp_path / "README.md"
    page.write_text(f"{publish.BEGIN}{publish.END}")
    with pytest.raises(publish.UnpublishableError, match="commit"):
        publish.publish(run, tmp_path)
    assert list(tmp_path.iterdir()) == [page]
    assert page.read_text() == f"{publish.BEGIN}{publish.END}"
    report.save(run, tmp_path / "run.json")
    monkeypatch.setattr(publish, "draw", None)  # nothing is drawn
    assert command.main(["--report-only", "--json", str(tmp_path / "run.json")]) == 1
    assert "not published" in capsys.readouterr().err


def test_a_full_run_of_what_no_commit_holds_is_kept_apart(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = committed(document)
    run.machine["commit"] += "-dirty"
    monkeypatch.setattr(command, "_measured", lambda *_: (run, []))
    monkeypatch.setattr(command, "RESULTS", tmp_path / "latest.json")
    monkeypatch.setattr(command, "UNPUBLISHED", tmp_path / "unpublished.json")
    assert command.main([]) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["unpublished.json"]
    assert "not published" in capsys.readouterr().err


def test_the_commit_is_dirty_when_what_is_measured_differs(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert machine.commit(tmp_path / "none") is None
    git("init")
    for name in ("writer/commit.py", "benchmarks/rows.py", "benchmarks/results/latest.json", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("add", ".")
    git("commit", "-m", "first")
    clean = machine.commit(tmp_path)
    assert clean is not None
    for name in ("benchmarks/results/latest.json", "benchmarks/results/chart.svg", "README.md", "notes.txt"):
        (tmp_path / name).write_text("written by a run, or not measured")
        assert machine.commit(tmp_path) == clean
    (tmp_path / "benchmarks/rows.py").write_text("after")
    assert machine.commit(tmp_path) == f"{clean}-dirty"
    git("commit", "-am", "second")
    assert machine.commit(tmp_path) != clean
    (tmp_path / "writer/new.py").write_text("not added yet")
    assert str(machine.commit(tmp_path)).endswith("-dirty")


def test_the_pages_show_the_results_in_the_tree(tmp_path: Path) -> None:
    charts = {name: caption for name, caption, _ in CHARTS}
    assert all((publish.CHARTS / f"{name}.svg").is_file() for name in charts)
    for page, text in publish.sections(report.load(publish.RESULTS), charts).items():
        copy = tmp_path / Path(page).name
        shutil.copy(publish.ROOT / page, copy)
        assert publish.replace_section(copy, text)
        assert copy.read_text(encoding="utf-8") == (publish.ROOT / page).read_text(encoding="utf-8")


def test_readme_shows_chosen_rows_and_those_missed(document: Path) -> None:
    assert set(publish.README_ROWS) <= set(suite.RESULT_NAMES)
    assert len(publish.README_ROWS) < 16
    run = report.load(document)
    run.results = [
        Result("get_cached", "chosen", "at most", 2.0, 1.0),
        Result("other", "not chosen", "at most", 2.0, 1.0),
        Result("another", "missed", "at most", 2.0, 3.0),
    ]
    pages = publish.sections(run, {})
    readme, performance = pages[publish.README], pages[publish.PERFORMANCE]
    assert [f"| {title} |" in readme for title in ("chosen", "not chosen", "missed")] == [True, False, True]
    assert all(f"| {title} |" in performance for title in ("chosen", "not chosen", "missed"))


def test_a_figure_is_told_with_what_it_is_compared_with() -> None:
    def line(figure: float | None, unit: str, note: str) -> str:
        result = Result("row", "title", "at most", 2.0, figure, unit, note)
        return markdown.brief_table([result]).splitlines()[-1]

    assert line(1.496, "x", "times a dict; 6 modules") == "| title | 1.50 x a dict | at most 2 x | reached |"
    assert line(27.04, "ms", "more than lmdb") == "| title | 27.0 ms more than lmdb | at most 2 ms | **missed** |"
    assert line(0.0, "records", "by calls") == "| title (by calls) | 0 records | at most 2 records | reached |"
    assert line(99.96, "x", "times a dict") == "| title | 100 x a dict | at most 2 x | **missed** |"
    assert line(None, "x", "failed: it") == "| title | failed: it | at most 2 x |  |"


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{publish.END} {publish.BEGIN}")
    assert not publish.replace_section(page, "text")
    assert page.read_text() == f"{publish.END} {publish.BEGIN}"
    assert not publish.replace_section(tmp_path / "none.md", "text")


def test_a_row_that_fails_is_reported_and_told_by_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.rows_memory.probe", lambda *_: 1 / 0)
    file = tmp_path / "run.json"
    assert command.main(["--quick", "--sizes", "6,20", "--only", "import_time", "--json", str(file)]) == 1
    (result,) = report.load(file).results
    assert result.figure is None
    assert "ZeroDivisionError" in result.note


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "get_cahced"]) == 2
    assert "get_cahced" in capsys.readouterr().err


def test_a_figure_is_held_against_its_limit() -> None:
    def result(bound: str, figure: float | None, limit: float | None = 2.0) -> Result:
        return Result("x", "x", bound, limit, figure)  # type: ignore[arg-type]

    assert result("at most", 2.0).reached is True
    assert result("at most", 2.1).reached is False
    assert result("at least", 2.0).reached is True
    assert result("at least", 1.9).reached is False
    assert result("at least", None).reached is None
    assert result("at least", 1.0, None).reached is None


def test_work_is_done_on_a_disk_and_removed(tmp_path: Path) -> None:
    assert suite.file_system(Path("/proc")) == "proc"
    with suite.bench_of((6,), quick=True, say=lambda _what, _share: None, folder=tmp_path) as made:
        assert made.dataset(6).names == list(workloads.CORE_NAMES)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
