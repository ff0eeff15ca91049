"""The numbers behind the pages: charts, filters, questions, the strip. Pure functions."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")

import msgspec
from pydantic import ValidationError

from dspy_registry.explorer import charts
from dspy_registry.explorer.ask import Question, as_command, as_python
from dspy_registry.explorer.changes import plain, unlisted
from dspy_registry.explorer.events import is_same
from dspy_registry.explorer.filters import Asked, command, split
from dspy_registry.explorer.one_module import rollback_command
from dspy_registry.explorer.pages import LONGEST_VALUE, chart_of, shortened, told
from dspy_registry.explorer.rows import alarm
from dspy_registry.explorer.strip import strip
from dspy_registry.registry_store.changes import Change, LabelChange
from dspy_registry.registry_store.health_file import HealthEntry


def test_a_sparkline_has_a_bar_for_each_step_with_calls() -> None:
    calls = [0] * 60
    calls[0], calls[59] = 10, 40
    failed = [0] * 60
    failed[59] = 20
    first, last = charts.sparkline(calls, failed)
    assert (first.x, first.height, first.failed) == (0, charts.HEIGHT / 4, 0)
    assert (last.height, last.failed) == (charts.HEIGHT, charts.HEIGHT / 2)
    assert last.x + last.width <= charts.WIDTH
    assert charts.sparkline([0] * 60, [0] * 60) == []


def test_durations_lie_in_order_on_their_axis() -> None:
    chart = charts.duration_chart([("small", 5, 10.0, 20.0, 200.0, 300.0, 400.0), ("large", 0, 1, 1, 1, 1, 1)])
    assert chart is not None
    (row,) = chart.rows
    assert row.longest is not None
    assert row.limit is not None
    assert 0 <= row.p50 < row.p90 < row.p99 < row.longest < row.limit <= chart.width
    assert [tick.label for tick in chart.ticks] == ["10 ms", "100 ms", "1 s"]
    assert charts.duration_chart([]) is None
    assert charts.duration_chart([("small", 5, 0.0, 0.0, 0.0, 0.0, 0.0)]) is None


def test_durations_and_sizes_are_told_as_people_say_them() -> None:
    assert [charts.milliseconds(value) for value in (None, 0.5, 12, 3400, 600_000)] == [
        "–",
        "0.5 ms",
        "12 ms",
        "3.4 s",
        "10 min",
    ]
    assert [charts.size(value) for value in (None, 12, 2048, 5 * 2**30)] == ["–", "12 bytes", "2.0 KiB", "5.0 GiB"]


def test_a_line_begins_at_the_left_and_its_largest_value_is_at_the_top() -> None:
    assert charts.line([0, 5, 10], 100, 50) == "0.0,50.0 50.0,25.0 100.0,0.0"
    assert charts.line([], 100, 50) == ""


def test_words_may_be_given_together_or_apart() -> None:
    assert split(["a, b", "c a"]) == ("a", "b", "c")


def test_empty_fields_of_a_form_ask_for_nothing() -> None:
    empty = {"category": "", "pool_type": "", "native": "", "gpu": "", "max_memory": "", "capabilities": [""]}
    assert Asked.model_validate(empty).arguments() == {}
    asked = Asked.model_validate({**empty, "gpu": "no", "capabilities": ["reasoning tool_use"], "max_memory": "low"})
    assert asked.arguments() == {"capabilities": ("reasoning", "tool_use"), "max_memory": "low", "gpu": False}
    assert command(asked.arguments()) == [
        "--capability",
        "reasoning",
        "--capability",
        "tool_use",
        "--max-memory",
        "low",
        "--no-gpu",
    ]


@pytest.mark.parametrize("wrong", [{"page": "0"}, {"max_memory": "huge"}, {"native": "perhaps"}, {"q": "x" * 301}])
def test_what_no_form_sends_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Asked.model_validate(wrong)


def test_a_question_is_the_same_in_python_and_as_a_command() -> None:
    question = Question.model_validate(
        {
            "capabilities": ["reasoning"],
            "input_size": "1800",
            "deadline_ms": "8000",
            "max_cost_usd": "",
            "exclude": ["a.B"],
        }
    )
    arguments = question.route_arguments()
    assert as_python(arguments) == (
        "registry.route(capabilities=('reasoning',), exclude=('a.B',), input_size=1800, deadline_ms=8000.0)"
    )
    assert as_command(arguments, None) == (
        "dspy-registry route --capability reasoning --input-size 1800 --deadline 8000 --exclude a.B --explain"
    )


@pytest.mark.parametrize(
    "wrong", [{"input_size": "-1"}, {"deadline_ms": "nan"}, {"max_cost_usd": "inf"}, {"prefer": "luck"}]
)
def test_a_question_out_of_bounds_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Question.model_validate(wrong)


def test_a_command_can_be_pasted_into_a_shell() -> None:
    assert rollback_command("a b; rm -rf $HOME", 3, "/my registry") == (
        "dspy-registry rollback 'a b; rm -rf $HOME' --to 3 --path '/my registry'"
    )
    assert rollback_command("acme.Qa", 3, None) == "dspy-registry rollback acme.Qa --to 3"


def test_a_long_value_is_cut_on_a_page() -> None:
    assert shortened(("a", "b")) == "a, b"
    assert shortened({"a": 1}).replace(" ", "") == '{"a":1}'
    assert len(shortened("x" * 100_000)) < LONGEST_VALUE + 40
    assert len(shortened([f"word{n}" for n in range(1000)])) < LONGEST_VALUE + 40


def test_a_failing_share_is_notable_before_it_is_alarming() -> None:
    assert [alarm(rate) for rate in (None, 0.0, 0.009, 0.01, 0.1)] == ["", "", "", "notable", "alarming"]


def test_what_a_page_leaves_out_of_a_change_is_counted() -> None:
    label = LabelChange("acme.Qa", "live", (), ((1, 10_000),))
    change = Change(7, 0, labels=(label,) * 250, policies=("acme.*",) * 12, overrides=("acme.Qa",))
    shown = plain(change)
    assert (len(shown["labels"]), shown["overrides"], shown["more"]) == (200, ["acme.Qa"], 50)
    assert unlisted(shown, 10) == 250 - 10 + 12 - 10


def test_the_chart_of_all_versions_is_in_the_order_of_sizes() -> None:
    seen = {"calls": 5, "p50": 10.0, "p90": 20.0, "p99": 30.0}
    usage = {"durations": {"large": seen, "normal": seen, "small": seen, "very_large": seen}}
    chart = chart_of({"version": 2, "usage_by_version": [], "usage": usage})
    assert chart is not None
    assert [row.label for row in chart.rows] == ["small", "normal", "large", "very_large"]


def test_the_strip_tells_what_is_wrong() -> None:
    error = {"file": "qa.toml", "line": 3, "field": "category", "message": "it is a number"}
    daemon = {"pid": 7, "sections": {"manifests": {"errors": [error], "overrides": ["acme.Qa"]}}}
    readers = [{"pid": 8, "behind": 500}, {"pid": 9, "behind": 3}]
    facts = {"daemon": daemon, "unreachable": None, "registry": {"readers": readers}, "problems": [], "seen_at": 1.0}
    shown = strip(facts, 5, 1000, [{"name": "acme.Qa"}])
    assert shown["daemon"] == {"up": True, "pid": 7, "why": ""}
    assert (shown["manifest_errors"], shown["manifest_error_count"]) == ([error], 1)
    assert (shown["overrides"], shown["circuit_count"]) == (["acme.Qa"], 1)
    assert shown["laggards"] == [readers[0]]


def test_the_strip_tells_of_a_cluster_where_there_is_one() -> None:
    told = {"hosts": {"a": {}, "b": {}}, "lag_seconds": 9.0, "error": "cut off", "set_aside": {"modules/x": "why"}}
    daemon = {"pid": 7, "sections": {"cluster": {**told, "errors": 1, "applied": 3, "newest": 5}}}
    facts = {"daemon": daemon, "unreachable": None, "registry": None, "problems": [], "seen_at": 1.0}
    shown = strip(facts, 5, 1000, [])["cluster"]
    assert (shown["host_count"], shown["error"], shown["set_aside_count"]) == (2, "cut off", 1)
    assert strip({**facts, "daemon": {"pid": 7, "sections": {}}}, 5, 1000, [])["cluster"] is None


def test_the_strip_says_so_when_no_daemon_answers() -> None:
    unreachable = {"type": "WriterUnavailableError", "message": "no.", "remedy": ""}
    facts = {"daemon": None, "unreachable": unreachable, "registry": None, "problems": [], "seen_at": 1.0}
    shown = strip(facts, 5, 1000, [])
    assert shown["daemon"]["up"] is False
    assert (shown["manifest_error_count"], shown["override_count"]) == (None, None)  # not 0: nobody knows
    assert shown["daemon"]["why"]


def test_a_deadline_that_two_clocks_tell_a_little_differently_is_the_same() -> None:
    entry = HealthEntry("acme.Qa", 1, "open", 1000.0, 5, "timeout", 1)
    assert is_same([entry], [msgspec.structs.replace(entry, until=1000.0004)])
    assert not is_same([entry], [msgspec.structs.replace(entry, until=1005.0)])
    assert not is_same([entry], [msgspec.structs.replace(entry, state="half_open")])
    assert not is_same([entry], [])


def test_a_command_in_a_remedy_is_shown_as_one_and_nothing_becomes_markup() -> None:
    assert told("`get <b>` shows it. Ask again.") == "<code>get &lt;b&gt;</code> shows it. Ask again."
    assert told("no module is <i>. `open") == "No module is &lt;i&gt;. <code>open</code>"
    assert told("") == ""
