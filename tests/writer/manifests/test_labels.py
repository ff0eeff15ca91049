"""Labels in manifests: what a file may say, what comes into force, and who wins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo
from dspy_registry.writer.manifests.declared_aliases import are_disturbed
from dspy_registry.writer.manifests.parse import load
from tests.writer.manifests.test_stage import Subject

MODULE = "modules: [{name: acme.Qa, estimated_duration: %d}]\n"
LABELS = (
    "labels: [{module: acme.Qa, label: champion, versions: 1}, {module: acme.Qa, label: live, versions: {1: 9, 2: 1}}]"
)


@pytest.fixture
def subject(registry_folder: Path) -> Iterator[Subject]:
    subject = Subject(registry_folder)
    with subject.writer, subject.reader:
        yield subject


def labels(subject: Subject) -> dict[str, dict[int, int]]:
    return {label: kept.versions for label, kept in subject.reader.labels("acme.Qa").items()}


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".toml", '[[labels]]\nmodule = "a.B"\nlabel = "live"\nversions = {3 = 90, 4 = 10}\n'),
        (".json", '{"labels": [{"module": "a.B", "label": "live", "versions": {"3": 9, "4": 1.0}}]}'),
        (".yaml", "labels:\n- {module: a.B, label: live, versions: {3: 9, 4: 1}}\n"),
    ],
)
def test_every_format_has_labels(suffix: str, text: str) -> None:
    declared = load(f"a{suffix}", text.encode(), suffix).declared
    assert declared is not None
    assert [(one.name, one.label, one.versions) for one in declared.labels] == [("a.B", "live", {3: 9000, 4: 1000})]


def test_everything_wrong_with_labels_is_told() -> None:
    text = """labels:
- {module: a.B, label: latest, versions: 1}
- {module: a.B, label: 3rd, versions: {1: 0, x: 2}}
- {module: a.B, label: live}
- {module: a.B, label: ok, versions: 1, weight: 3}
- {module: a.B, label: ok, versions: 2}
- text
"""
    errors = load("a.yaml", text.encode(), ".yaml").errors
    assert sorted(error.line for error in errors) == [2, 3, 3, 4, 5, 6, 7]
    assert {error.field for error in errors} >= {"labels[0].label", "labels[1].label", "labels[1].versions"}


def test_labels_follow_the_files(subject: Subject) -> None:
    first = subject.load(a=MODULE % 1 + "labels: [{module: acme.Qa, label: champion, versions: 1}]")
    assert not first.errors
    assert subject.load(a=MODULE % 2 + LABELS).errors == ()  # version 2 comes with the same commit
    assert labels(subject) == {"champion": {1: 10_000}, "live": {1: 9000, 2: 1000}}
    assert subject.reader.labels("acme.Qa")["live"].source == "manifest:a.yaml"
    before = subject.reader.revision
    subject.load(a=MODULE % 2 + LABELS)
    assert subject.reader.revision == before
    subject.load(b=LABELS, a=MODULE % 2)
    assert subject.reader.labels("acme.Qa")["live"].source == "manifest:b.yaml"
    subject.load(a=MODULE % 2)
    assert labels(subject) == {}


def test_a_clients_label_wins(subject: Subject) -> None:
    subject.load(a=MODULE % 1)
    subject.load(a=MODULE % 2 + LABELS)
    subject.writer.set_label("acme.Qa", "champion", 2)
    subject.load(a=MODULE % 2 + LABELS)
    assert labels(subject)["champion"] == {2: 10_000}
    subject.load(a=MODULE % 2)
    assert labels(subject) == {"champion": {2: 10_000}}


def test_a_file_with_a_label_that_cannot_be_set_is_retained(subject: Subject) -> None:
    loaded = subject.load(a=MODULE % 1 + LABELS)
    assert [error.field for error in loaded.errors] == ["labels[1]"]
    assert loaded.needs_registry
    assert loaded.retained == {"a.yaml"}
    both = subject.load(
        a=MODULE % 1 + "labels: [{module: acme.Qa, label: x, versions: 1}]", b=LABELS.replace("live", "x")
    )
    assert {error.file for error in both.errors} == {"a.yaml", "b.yaml"}


def test_labels_come_back_with_their_module(subject: Subject) -> None:
    subject.writer.register_module(ModuleInfo("acme.Qa"))
    loaded = subject.load(b="labels: [{module: acme.Qa, label: champion, versions: 1}]")
    environment = subject.writer.store.environment
    before = subject.reader.revision
    subject.writer.unregister_module("acme.Qa")
    assert not are_disturbed(environment, loaded.aliases, loaded.labels, before, before + 1)
    subject.writer.register_module(ModuleInfo("acme.Qa"))
    assert are_disturbed(environment, loaded.aliases, loaded.labels, before, before + 2)
    again = subject.load(b="labels: [{module: acme.Qa, label: champion, versions: 1}]")
    assert again.errors == ()
    assert labels(subject) == {"champion": {1: 10_000}}
