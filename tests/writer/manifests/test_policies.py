"""Policies that manifests declare: they come and go with their files, and a client's win."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import Policy
from tests.writer.manifests.test_stage import Subject


@pytest.fixture
def subject(registry_folder: Path) -> Iterator[Subject]:
    subject = Subject(registry_folder)
    yield subject
    subject.reader.close()
    subject.writer.close()


def policies(subject: Subject) -> dict[tuple[str, str], Policy]:
    with subject.reader.snapshot() as snapshot:
        return snapshot.policies()


def test_policies_come_and_go_with_their_files(subject: Subject) -> None:
    assert subject.load(a="policies: [{pattern: 'acme.*', max_concurrency: 4}]").errors == ()
    assert policies(subject) == {("manifest:a.yaml", "acme.*"): Policy(max_concurrency=4)}
    before = subject.reader.revision
    subject.load(a="policies: [{pattern: 'acme.*', max_concurrency: 4}]")
    assert subject.reader.revision == before
    subject.load(b="policies: [{pattern: 'acme.*', max_timeout: 2}]")
    assert policies(subject) == {("manifest:b.yaml", "acme.*"): Policy(max_timeout=2)}
    subject.load()
    assert policies(subject) == {}


def test_a_clients_policy_wins_over_a_manifests(subject: Subject) -> None:
    subject.load(a="policies: [{pattern: dspy.Predict, max_concurrency: 4, max_timeout: 9}]")
    subject.writer.set_policy("dspy.Predict", Policy(max_concurrency=2))
    assert subject.reader.policy("dspy.Predict") == Policy(max_concurrency=2, max_timeout=9)
    subject.writer.remove_policy("dspy.Predict")
    assert subject.reader.policy("dspy.Predict") == Policy(max_concurrency=4, max_timeout=9)


def test_a_pattern_in_two_files_is_an_error_of_both(subject: Subject) -> None:
    declared = "policies: [{pattern: 'acme.*', max_concurrency: 4}]"
    assert [(error.file, error.field) for error in subject.load(a=declared, b=declared).errors] == [
        ("a.yaml", "policies[0].pattern"),
        ("b.yaml", "policies[0].pattern"),
    ]
    assert policies(subject) == {}


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("{pattern: 'acme.*', max_concurrency: 0}", "policies[0].max_concurrency"),
        ("{pattern: 'acme.*', max_concurrency: many}", "policies[0].max_concurrency"),
        ("{pattern: 'acme.*', max_calls: 3}", "policies[0].max_calls"),
        ("{max_concurrency: 3}", "policies[0]"),
        ("{pattern: '', max_concurrency: 3}", "policies[0].pattern"),
        ("{pattern: 'acme.*'}", "policies[0]"),
        ("3", "policies[0]"),
    ],
)
def test_what_is_wrong_with_a_policy_is_named(subject: Subject, entry: str, field: str) -> None:
    assert field in [error.field for error in subject.load(a=f"policies: [{entry}]").errors]
