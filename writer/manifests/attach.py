"""Manifests: files that declare modules, aliases, implications, and defaults for discovered modules.

The files of one folder are one tree. It comes into force as a whole, except files with errors: what such a file
declared last stays in force. `docs/manifests.md` says what a file may contain.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import msgspec

from dspy_registry.registry_store.paths import registry_path
from dspy_registry.registry_store.sharing import attach, detach
from dspy_registry.registry_store.vocabulary import CORE_IMPLICATIONS
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.daemon.host import Host
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.manifests.declarations import ManifestError
from dspy_registry.writer.manifests.folder import ManifestFolder
from dspy_registry.writer.manifests.folder_watch import ManifestWatch
from dspy_registry.writer.manifests.schema import manifest_schema
from dspy_registry.writer.manifests.stage import Loaded, stage_tree
from dspy_registry.writer.manifests.standing import standing_of
from dspy_registry.writer.manifests.tree import Tree, compile_tree

__all__ = ["ManifestError", "TreeReport", "attach_manifests", "manifest_schema", "validate_tree"]


class TreeReport(msgspec.Struct, frozen=True):
    """What a folder of manifests declares: how many files and modules there are, and all errors.

    `overrides` are the modules whose record in the registry is a client's, so that the manifest does not count.
    """

    directory: str
    files: int
    modules: int
    errors: tuple[ManifestError, ...]
    overrides: tuple[str, ...] = ()


def validate_tree(directory: str | os.PathLike[str], registry: str | os.PathLike[str] | None = None) -> TreeReport:
    """Check a folder of manifests, and change nothing.

    With a registry, it is checked as the daemon of that registry would now. `registry` None: as a daemon would at its
    first start with the folder. Then an alias of a module that no manifest declares is no error, because the module may
    be discovered, or registered by a client.
    """
    with closing(ManifestFolder(Path(directory))) as folder:
        tree = folder.read().tree
        if registry is not None:
            loaded, overrides = _staged(tree, registry)
            errors = _sorted(loaded.errors)
            return TreeReport(str(folder.root), len(tree.files), len(loaded.modules), errors, overrides)
        plan = compile_tree(tree, {}, (dict(CORE_IMPLICATIONS),))
        modules = sum(len(declared.modules) for declared in plan.effective.values())
        return TreeReport(str(folder.root), len(tree.files), modules, _sorted(plan.errors))


def _staged(tree: Tree, registry: str | os.PathLike[str]) -> tuple[Loaded, tuple[str, ...]]:
    """Stage the tree on a draft that is not committed. Also the modules that clients override."""
    environment = attach(registry_path(registry))
    try:
        with environment.reading() as txn:
            loaded = stage_tree(Draft(Catalog(txn, environment.dbs)), tree)
            return loaded, standing_of(txn, environment.dbs, loaded.modules).overrides
    finally:
        detach(environment)


def _sorted(errors: Iterable[ManifestError]) -> tuple[ManifestError, ...]:
    """Sorted by file and line. Errors without a line, such as "and N more", are the last of their file."""
    return tuple(sorted(errors, key=lambda error: (error.file, not error.line, error.line)))


def attach_manifests(host: Host, directory: str | os.PathLike[str]) -> ManifestWatch:
    """Let the daemon load a folder of manifests and follow its changes. Call it from an extension of the daemon.

    The status has a section `manifests`. A missing folder is an error in that section and in the log, and what its
    manifests declared last stays in force.
    """
    watch = ManifestWatch(host, Path(directory))
    host.add_section("manifests", watch.status)
    host.add_task(watch.run)
    return watch
