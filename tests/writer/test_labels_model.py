"""Any steps with versions and labels, beside a plain model: after each, every answer is the model's."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_registry import (
    InvalidArgumentError,
    ModuleInfo,
    Registry,
    RegistryWriter,
    UnknownLabelError,
    UnknownModuleError,
    UnknownVersionError,
)
from tests.conftest import violations
from tests.support.label_model import ModelOfModule, table_of

NAMES = ("acme.A", "acme.AB")
LABELS = ("champion", "live")
names, labels = st.sampled_from(NAMES), st.sampled_from(LABELS)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("register"), names, st.integers(1, 3), st.integers(1, 20)),
        st.tuples(st.just("unregister"), names),
        st.tuples(st.just("label"), names, labels, st.dictionaries(st.integers(1, 60), st.integers(1, 9), max_size=4)),
        st.tuples(st.just("unlabel"), names, labels),
        st.tuples(st.just("commit")),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(steps=STEPS)
def test_i8_labels_versions_and_history_are_as_in_a_plain_model(
    steps: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("labels") / "registry"
    models = {name: ModelOfModule() for name in NAMES}
    with RegistryWriter(folder) as writer, Registry(folder, cache_size=8) as registry:
        for step in [*steps, ("commit",)]:
            perform(writer, models, step)
            for name, model in models.items():
                model.settle()
                agree(registry, name, model)
    assert violations(folder) == []


def perform(writer: RegistryWriter, models: dict[str, ModelOfModule], step: tuple[Any, ...]) -> None:
    action, *given = step
    if action == "commit":
        return
    name = given[0]
    model = models[name]
    if action == "register":
        durations = [len(model.durations) % 7 + number for number in range(given[2])]
        for wanted in durations:
            model.register(wanted)
        # all in one commit
        writer.register_modules([ModuleInfo(name, estimated_duration=wanted) for wanted in durations])
    elif action == "unregister":
        refused = not model.is_registered
        with pytest.raises(UnknownModuleError) if refused else nullcontext():
            writer.unregister_module(name)
        model.unregister()
    elif action == "label":
        set_label(writer, model, *given)
    else:
        with pytest.raises((UnknownModuleError, UnknownLabelError)) if given[1] not in model.labels else nullcontext():
            writer.remove_label(name, given[1])
        model.labels.pop(given[1], None)


def set_label(writer: RegistryWriter, model: ModelOfModule, name: str, label: str, drawn: dict[int, int]) -> None:
    weights = {1 + version % max(1, model.newest + 1): weight for version, weight in drawn.items()}
    error: Any = None
    if not weights:
        error = InvalidArgumentError
    elif not model.is_registered:
        error = UnknownModuleError
    elif not model.kept.issuperset(weights):
        error = UnknownVersionError
    with pytest.raises(error) if error else nullcontext():
        writer.set_label(name, label, weights)
    if error is None:
        with Registry(writer.store.folder) as fresh:
            runs = fresh.labels(name)[label].runs
        before, model.labels[label] = model.labels.get(label), table_of(runs)
        assert set(model.labels[label]) == set(weights)
        if before is not None:
            moved = sum(old != new for old, new in zip(before, model.labels[label], strict=True))
            shrunk = sum(max(0, before.count(v) - model.labels[label].count(v)) for v in set(before))
            assert moved == shrunk


def agree(registry: Registry, name: str, model: ModelOfModule) -> None:
    if not model.is_registered:
        for asked in (name, f"{name}@1", f"{name}@live"):
            with pytest.raises(UnknownModuleError):
                registry.get_module(asked)
        return
    assert [stored.provenance.version for stored in registry.history(name)] == sorted(model.kept, reverse=True)
    assert registry.resolve(name).version == registry.resolve(f"{name}@latest").version == model.newest
    for version in model.kept:
        assert registry.get_module(f"{name}@{version}").estimated_duration == model.durations[version - 1]
    assert {label: table_of(kept.runs) for label, kept in registry.labels(name).items()} == model.labels
    for label in LABELS:
        if label not in model.labels:
            with pytest.raises(UnknownLabelError):
                registry.resolve(f"{name}@{label}")
            continue
        assert registry.resolve(f"{name}@{label}").version == model.heaviest(label)
        assert registry.get_module(f"{name}@{label}").estimated_duration == model.durations[model.heaviest(label) - 1]
        for key in ("a", "b", "user-17"):
            assert registry.resolve(f"{name}@{label}", key=key).version == model.chosen(name, label, key)
