"""Who changed what: by the kernel's word, in the record, its history and the change log."""

from __future__ import annotations

import os
from pathlib import Path

from dspy_registry import ModuleInfo, Registry, RegistryWriter, WriterClient
from dspy_registry.registry_store.layers import Layer
from tests.support.daemon_process import daemon

ME = (os.geteuid(), os.getpid())


def test_an_embedded_writer_signs_with_its_own_process(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(ModuleInfo("acme.X"))
        writer.store.committer.commit(lambda draft: draft.declare("acme.Y", Layer("manifest:a.toml", {})))
        writer.register_module(ModuleInfo("acme.X", estimated_duration=7))
        writer.unregister_module("acme.X")
        assert [kept.provenance.by for kept in registry.history("acme.X")] == [ME, ME]
        assert registry.describe("acme.Y").provenance.by is None
        assert registry.describe("dspy.Predict").provenance.by is None
        with registry.snapshot() as snapshot:
            changes = snapshot.changes_since(1)
    assert [change.by for change in changes] == [(ME,), (), (ME,), (ME,)]
    assert [module.by for change in changes for module in change.modules] == [ME, None, ME, ME]


def test_a_source_that_takes_over_signs_too(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(registry["dspy.Predict"])
        kept = registry.describe("dspy.Predict").provenance
        assert (kept.version, kept.source, kept.by) == (1, "client", ME)


def test_the_daemon_signs_with_the_process_at_the_other_end(registry_folder: Path) -> None:
    with daemon(registry_folder), WriterClient(registry_folder) as client, Registry(registry_folder) as registry:
        client.register_module(ModuleInfo("acme.X"))
        client.register_modules([ModuleInfo("acme.Y"), ModuleInfo("acme.Z")])
        client.set_alias("why", "acme.Y")
        for name in ("acme.X", "acme.Y", "acme.Z"):
            assert registry.describe(name).provenance.by == ME
        assert registry.describe("dspy.Predict").provenance.by is None
        with registry.snapshot() as snapshot:
            assert [change.by for change in snapshot.changes_since(1)] == [(ME,)] * 3
