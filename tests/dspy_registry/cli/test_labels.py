"""`label`, `diff`, and what `get` and `history` show of versions: through a real daemon, and without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter
from tests.support.command import answer, daemon, refusal, run


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry that a daemon serves; $DSPY_REGISTRY names it. acme.Qa is at version 4."""
    path = tmp_path / "served"
    monkeypatch.setenv("DSPY_REGISTRY", str(path))
    with RegistryWriter(path) as writer:
        for duration in (10, 20, 30, 40):
            writer.register_module(ModuleInfo("acme.Qa", estimated_duration=duration, metadata={"d": duration}))
    with daemon(path):
        yield path


def test_labels_through_a_daemon(served: Path) -> None:
    answer("label", "set", "acme.Qa", "champion", "3")
    answer("label", "set", "acme.Qa", "live", "3=90", "4=10", "--expected", "0")
    told = answer("label", "list")["labels"]
    assert [(one["name"], one["label"], one["versions"]) for one in told] == [
        ("acme.Qa", "champion", {"3": 100.0}),
        ("acme.Qa", "live", {"3": 90.0, "4": 10.0}),
    ]
    assert all(one["by"] and one["source"] == "client" for one in told)
    assert "3=90 4=10" in run("label", "list", "qa").stdout
    assert answer("get", "acme.Qa@champion")["estimated_duration"] == 30
    assert answer("get", "acme.Qa@champion")["labels"] == {"champion": 100.0, "live": 90.0}
    assert answer("get", "acme.Qa", "--at-version", "2")["estimated_duration"] == 20
    assert answer("get", "acme.Qa@latest", "--explain")["explained"]["estimated_duration"] == "client"
    with Registry(served) as registry:
        for key in ("user-17", "user-18", "u"):
            chosen = registry.resolve("acme.Qa@live", key=key).version
            assert answer("get", "acme.Qa@live", "--key", key)["provenance"]["version"] == chosen
    assert refusal("label", "set", "acme.Qa", "live", "4", "--expected", "3=1,4=1")[1]["type"] == "LabelConflictError"
    assert refusal("label", "set", "acme.Qa", "live", "9")[1]["type"] == "UnknownVersionError"
    assert refusal("get", "acme.Qa@nope")[1]["type"] == "UnknownLabelError"
    assert refusal("label", "remove", "acme.Qa", "nope")[1]["type"] == "UnknownLabelError"
    answer("label", "remove", "acme.Qa", "champion")
    assert answer("unregister", "acme.Qa")["labels"] == {"acme.Qa": ["live"]}
    assert answer("label", "list")["labels"] == []


def test_two_versions_are_compared(served: Path) -> None:
    answer("label", "set", "acme.Qa", "old", "2")
    told = answer("diff", "acme.Qa", "old", "latest")
    assert (told["old_version"], told["new_version"]) == (2, 4)
    assert told["changes"] == {"estimated_duration": {"old": 20, "new": 40}, "metadata.d": {"old": 20, "new": 40}}
    assert answer("diff", "acme.Qa", "3", "3")["changes"] == {}
    table = run("diff", "acme.Qa", "2", "3").stdout.splitlines()
    assert table[1].split() == ["estimated_duration", "20", "30"]
    history = answer("history", "acme.Qa")
    assert history["labels"] == {"old": {"2": 100.0}}
    assert history["versions"][0]["changes"]["estimated_duration"] == {"old": 30, "new": 40}
    answer("register", "-", stdin=json.dumps(history["versions"][1]))
    shown = run("history", "acme.Qa", "--values")
    assert "old" in shown.stdout
    assert shown.returncode == 0


@pytest.mark.parametrize("versions", [("3=90", "4"), ("x",), ("3=x",), ("3=1", "3=2"), ("3", "4")])
def test_what_is_no_version_is_refused(served: Path, versions: tuple[str, ...]) -> None:
    assert run("label", "set", "acme.Qa", "live", *versions).returncode == 2
