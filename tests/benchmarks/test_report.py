"""A run of the benchmarks is reported, judged, drawn and published as it was measured."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import machine, markdown, publish, report, suite, workloads
from benchmarks.charts import CHARTS
from benchmarks.rows import Result
from tests.benchmarks.test_measuring import SIZE

# One of the fixtures measures every row, so one process makes it, once.
pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("bench report")]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("run") / "run.json"
    assert command.main(["--quick", "--sizes", f"6,{SIZE}", "--json", str(file)]) == 0
    return file


@pytest.mark.full
def test_a_run_reports_every_row(document: Path) -> None:
    run = json.loads(document.read_bytes())
    assert [result["name"] for result in run["results"]] == list(suite.RESULT_NAMES)
    assert {"processor", "python", "packages", "liblmdb", "file system"} <= set(run["machine"])
    for result in run["results"]:
        assert result["figure"] is not None or "not measured" in result["note"]
        assert result["figure"] is None or result["figure"] > 0 or result["unit"] != "x"


@pytest.mark.full
def test_the_raw_output_repeats_what_each_figure_says(document: Path) -> None:
    written = json.loads(document.read_bytes())["results"]
    judged = report.load(document).results
    assert [(each["reached"], each["target"]) for each in written] == [(each.reached, each.target) for each in judged]
    assert {each.reached for each in judged} >= {True, None}


@pytest.mark.full
def test_statistics_drop_no_cached_record(document: Path) -> None:
    found = report.load(document).result("usage_dropped")
    assert found is not None
    assert found.facts["calls"] > 0
    assert (found.figure, found.facts["revisions"]) == (0, 0)


@pytest.mark.full
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


@pytest.mark.full
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
    shown = [name for name, _, _ in CHARTS if f"](benchmarks/results/{name}.svg)" in text]
    assert shown == [publish.README_CHART]
    before = {chart.name: chart.read_bytes() for chart in charts.iterdir()}
    publish.publish(committed(document), tmp_path)
    assert readme.read_text(encoding="utf-8") == text
    assert {chart.name: chart.read_bytes() for chart in charts.iterdir()} == before


@pytest.mark.parametrize("commit", [None, "0123456789ab-dirty"])
@pytest.mark.full
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
    with pytest.raises(publish.UnpublishableError):
        publish.publish(run, tmp_path)
    assert list(tmp_path.iterdir()) == [page]
    assert page.read_text() == f"{publish.BEGIN}{publish.END}"
    report.save(run, tmp_path / "run.json")
    monkeypatch.setattr(publish, "draw", None)  # nothing is drawn
    assert command.main(["--report-only", "--json", str(tmp_path / "run.json")]) == 1
    assert "not published" in capsys.readouterr().err


@pytest.mark.full
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


@pytest.mark.full
def test_readme_shows_three_rows_and_one_chart_and_the_other_page_all(document: Path) -> None:
    assert set(publish.README_ROWS) <= set(suite.RESULT_NAMES)
    assert len(publish.README_ROWS) == 3
    run = report.load(document)
    run.results = [
        Result("get_cached", "chosen", "at most", 2.0, 1.0),
        Result("other", "not chosen", "at most", 2.0, 1.0),
        Result("another", "missed", "at most", 2.0, 3.0),
    ]
    charts = {name: caption for name, caption, _ in CHARTS}
    pages = publish.sections(run, charts)
    readme, performance = pages[publish.README], pages[publish.PERFORMANCE]
    assert [f"| {title} |" in readme for title in ("chosen", "not chosen", "missed")] == [True, False, False]
    assert "2 of 3 targets reached" in readme  # a missed target is counted there, and shown on the other page
    assert all(f"| {title} |" in performance for title in ("chosen", "not chosen", "missed"))
    assert [name in readme for name in charts] == [name == publish.README_CHART for name in charts]
    assert all(f"](../benchmarks/results/{name}.svg)" in performance for name in charts)


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
