"""Labels through the daemon: both kinds of client, one commit, and a request that is made twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dspy_registry import (
    AsyncWriterClient,
    InvalidArgumentError,
    LabelConflictError,
    LabelUpdate,
    ModuleInfo,
    Registry,
    UnknownLabelError,
    UnknownVersionError,
    WriterClient,
)
from dspy_registry.registry_store.labels import MAX_UPDATES
from dspy_registry.registry_store.protocol import SetLabels
from dspy_registry.writer.client import calls
from tests.support.command import daemon

NAME = "acme.Qa"


def test_both_clients_set_labels_in_one_commit(registry_folder: Path) -> None:
    with daemon(registry_folder), WriterClient(registry_folder) as client, Registry(registry_folder) as registry:
        for duration in range(4):
            client.register_module(ModuleInfo(NAME, estimated_duration=duration))
        revision = client.set_labels([LabelUpdate(NAME, "champion", 3), LabelUpdate(NAME, "live", {3: 90, 4: 10})])
        assert registry.revision == revision
        assert set(registry.labels(NAME)) == {"champion", "live"}
        with pytest.raises(LabelConflictError):
            client.set_label(NAME, "champion", 4, expected=2)
        with pytest.raises(UnknownVersionError) as unknown:
            client.set_label(NAME, "champion", 9)
        assert unknown.value.kept == (4, 3, 2, 1)
        with pytest.raises(InvalidArgumentError):
            client.set_label(NAME, "latest", 4)
        weights = {version: float(version) for version in range(5, 21)}  # the largest call is understood
        with pytest.raises(LabelConflictError):
            client.set_labels([LabelUpdate(NAME, f"l{number}", weights, weights) for number in range(MAX_UPDATES)])

        async def asynchronously() -> None:
            async with AsyncWriterClient(registry_folder) as other:
                await other.set_label(NAME, "champion", 4, expected=3)
                await other.remove_label(NAME, "live", expected={3: 9, 4: 1})
                with pytest.raises(UnknownLabelError):
                    await other.remove_label(NAME, "live")

        asyncio.run(asynchronously())
        assert {label: kept.versions for label, kept in registry.labels(NAME).items()} == {"champion": {4: 10_000}}
        with pytest.raises(UnknownLabelError) as nothing:
            registry.resolve(f"{NAME}@live")
        assert nothing.value.labels == ("champion",)


def test_a_call_that_may_fail_because_it_succeeded_names_what_it_repeats() -> None:
    call = calls.set_labels([LabelUpdate(NAME, "champion", None)])
    assert call.kind is SetLabels
    assert call.fails_when_repeated
