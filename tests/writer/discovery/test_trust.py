"""Nothing that the discovered interpreter leaves is believed before it is checked."""

from __future__ import annotations

import msgspec
import pytest

from dspy_registry.writer.discovery import probe_run as discovery_run
from dspy_registry.writer.discovery.evaluate import Evaluation, evaluate
from dspy_registry.writer.discovery.frames import Reports
from dspy_registry.writer.discovery.infer import infer, one_line, summary
from dspy_registry.writer.discovery.probe_run import At, End, Failed, Parameter, Seen, Trace


def seen(name: str, **changes: object) -> Seen:
    facts = Seen(
        key=name,
        name=name,
        kind="module",
        path=name,
        abstract=False,
        mro=["dspy.Module"],
        parameters=[],
        doc=None,
        init_doc=None,
    )
    return msgspec.structs.replace(facts, **changes)


def evaluated(*records: discovery_run.Record, code: int | None = None) -> Evaluation:
    return evaluate("acme", [Trace(list(records), code=code)], "time is up")


@pytest.mark.parametrize("name", ["dspy.Predict", "acme", "acme.", "acme.a b", "other.Acme", ""])
def test_names_that_are_not_the_roots_are_refused(name: str) -> None:
    evaluation = evaluated(At("acme"), seen(name), seen("acme.Fine"), End())
    assert [info.name for info in evaluation.modules] == ["acme.Fine"]
    assert list(evaluation.failures) == [name]


def test_what_is_said_of_names_is_safe_to_print() -> None:
    evaluation = evaluated(At("acme"), Failed("acme.\x1b[2J", "\x1b[31m", False), End())
    assert evaluation.failures == {"acme. [2J": "[31m"}


def test_abstract_classes_are_left_out() -> None:
    assert evaluated(At("acme"), seen("acme.Base", abstract=True), End()).modules == []


def test_what_one_attempt_could_not_import_and_another_could_is_no_failure() -> None:
    slow = Trace([At("acme"), At("acme.slow"), seen("acme.slow.Slow"), At("acme.stuck")])
    quick = Trace([At("acme"), At("acme.user"), Failed("acme.slow", "halted", False), End()])
    evaluation = evaluate("acme", [slow, quick], "time is up")
    assert evaluation.failures == {"acme.stuck": "time is up"}
    assert evaluation.looked_through
    assert [info.name for info in evaluation.modules] == ["acme.slow.Slow"]


def test_attempts_after_one_that_came_to_its_end_do_not_count() -> None:
    whole = Trace([At("acme"), At("acme.slow"), seen("acme.slow.Slow"), End()])
    left_out = Trace([At("acme"), At("acme.user"), Failed("acme.user", "halted", False)], code=-9)
    evaluation = evaluate("acme", [whole, left_out], "time is up")
    assert evaluation.failures == {}


def test_a_root_that_was_not_looked_through_is_a_failure_as_a_whole() -> None:
    evaluation = evaluated(At("acme"), At("acme.b"), code=-11)
    assert set(evaluation.failures) == {"acme"}
    assert evaluation.failures["acme"].startswith("acme.b: ")
    assert "SIGSEGV" in evaluation.failures["acme"]
    assert not evaluation.looked_through


def test_lines_that_are_not_understood_are_skipped_and_reported() -> None:
    good = msgspec.json.encode(seen("acme.Fine"))
    bad = [b"\xff", b"{}", b'{"type":"at","module":7}', b"[" * 100_000, b'{"type":"at","mod']
    trace = discovery_run._read(b"\n".join([*bad[:-1], good, msgspec.json.encode(End()), bad[-1]]))
    assert [type(record) for record in trace.records] == [Seen, End]
    evaluation = evaluate("acme", [trace], "time is up")
    assert [info.name for info in evaluation.modules] == ["acme.Fine"]
    assert set(evaluation.failures) == {"acme"}
    assert not evaluation.looked_through


def test_what_is_read_is_bounded_for_each_root() -> None:
    line = msgspec.json.encode(seen("acme.Fine")) + b"\n"
    reports = Reports(2 * len(line))
    for name in ("1.0", "1.1", "1.0", "2.0"):
        reports.take(piece(name, line))
    (first, second), (other,) = (list(discovery_run._traces(reports, order)) for order in (1, 2))
    assert [len(trace.records) for trace in (first, second, other)] == [1, 1, 1]
    assert [bool(trace.garbled) for trace in (first, second, other)] == [True, False, False]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pieces_come_in_any_portions(size: int) -> None:
    sent = b"".join(map(piece, ("run", "1.0", "run", "2.3"), (b"a", b"", b"b" * 50, b"c")))
    reports = Reports(1000)
    for start in range(0, len(sent), size):
        reports.take(sent[start : start + size])
    assert [reports.report(name) for name in ("run", "1.0", "2.3", "2.0")] == [b"a" + b"b" * 50, b"", b"c", None]


@pytest.mark.parametrize(
    "wrong", [b"\0" * 100, b"../run 5\nhello" * 9, b"1.0 -5\n" * 9, b"1.0 99999999999999999999999\n"]
)
def test_what_is_no_piece_ends_the_reports(wrong: bytes) -> None:
    reports = Reports(1000)
    reports.take(piece("run", b"good") + wrong + piece("run", b"bad"))
    reports.take(piece("run", b"bad"))
    assert reports.report("run") == b"good"


def piece(name: str, data: bytes) -> bytes:
    return f"{name} {len(data)}\n".encode() + data


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        (None, None),
        ("", None),
        ("\n   One.\n   Two.", "One."),
        ("Experimental: may change.\n\n    What it is.\n", "What it is."),
        ("    Experimental: may change.\n\nWhat it is.\n\n    More.", "What it is."),
        (".. deprecated:: 3.4\n    Use RLM.\n\nRuns code.", "Runs code."),
        ("\x1b[31mRed\x07", "[31mRed"),
        ("w" * 201, "w" * 197 + "..."),
    ],
)
def test_the_first_line_of_a_docstring(doc: str | None, expected: str | None) -> None:
    assert summary(doc) == expected


def test_one_line_has_no_control_characters() -> None:
    assert one_line("a\r\nb\u2028c\ud800", 100).isprintable()


def test_deprecation_and_unknown_parameters_are_told_apart() -> None:
    facts = seen("acme.Old", parameters=None, doc=".. deprecated:: 1\n\nOld.")
    metadata = infer(facts, "acme.Old", (), "acme", "acme", None).metadata
    assert metadata["deprecated"] is True
    assert "parameters" not in metadata
    assert "version" not in metadata
    hinted = infer(
        seen("acme.New", parameters=[Parameter("tools", required=True)]),
        "acme.New",
        ("acme.Newer",),
        "acme",
        "acme",
        None,
    )
    assert hinted.capabilities == ("tool_use",)
    assert hinted.metadata["aliases"] == ["acme.Newer"]
