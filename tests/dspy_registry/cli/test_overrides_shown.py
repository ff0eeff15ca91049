"""Overrides, renames and the newer conditions of `find`, as the command line has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, RegistryWriter
from dspy_registry.registry_store.layers import Layer
from tests.support.command import answer, run


def test_an_override_is_shown_and_released(registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_REGISTRY", str(registry_folder))
    with RegistryWriter(registry_folder) as writer:
        layer = Layer("manifest:a.toml", {"capabilities": ["complex_reasoning"]})
        writer.store.committer.commit(lambda draft: draft.declare("acme.A", layer))
    done = run("register", "--name", "acme.A", "--capability", "complex_reasoning", "--duration", "5", "--embedded")
    assert "manifest:a.toml" in done.stderr
    shown = answer("get", "acme.A")
    assert shown["overrides"] == ["manifest:a.toml"]
    assert shown["implied_capabilities"] == ["reasoning"]
    (listed,) = answer("find", "--any-capability", "complex_reasoning", "--no-gpu", "--max-memory", "low")["modules"]
    assert listed == shown
    assert "client over manifest:a.toml" in run("get", "acme.A").stdout
    assert answer("release", "acme.A", "--embedded") == {"revision": 4, "names": ["acme.A"], "released": ["acme.A"]}
    assert answer("get", "acme.A")["overrides"] == []
    told = answer("unregister", "acme.A", "--embedded")
    assert told == {
        "revision": 5,
        "names": ["acme.A"],
        "unknown": [],
        "declared_by": {"acme.A": "manifest:a.toml"},
        "labels": {},
    }


def test_a_module_is_renamed(registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_REGISTRY", str(registry_folder))
    with RegistryWriter(registry_folder) as writer:
        writer.register_module(ModuleInfo("acme.Summarise", estimated_duration=1200))
    told = answer("rename", "acme.Summarise", "acme.Sum", "--embedded")
    assert told == {"revision": 3, "name": "acme.Summarise", "new_name": "acme.Sum"}
    assert answer("get", "acme.Sum")["estimated_duration"] == 1200
    assert run("get", "acme.Summarise").returncode == 1


def test_modules_without_a_capability_are_found(registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_REGISTRY", str(registry_folder))
    RegistryWriter(registry_folder).close()
    found = answer("find", "--without-capability", "reasoning", "--without-capability", "embeddings", "--names")
    assert found["modules"] == ["dspy.Predict", "dspy.MIPROv2"]
