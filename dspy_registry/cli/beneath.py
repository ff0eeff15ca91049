"""What other sources declare of the modules that a command changes: an override is said when it begins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dspy_registry.cli import console
from dspy_registry.registry_store.layers import MANIFEST_PREFIX


def declaring_manifests(path: Path | None, names: Iterable[str]) -> dict[str, str]:
    """The manifest's source of each module that one declares, by full name."""
    from dspy_registry.registry_store import lookup
    from dspy_registry.registry_store.paths import registry_path
    from dspy_registry.registry_store.sharing import attach, detach

    environment = attach(registry_path(path))
    try:
        with environment.reading() as txn:
            layers = {name: lookup.load_layers(txn, environment.dbs, name) for name in names if lookup.is_askable(name)}
    finally:
        detach(environment)
    return {name: source for name, held in layers.items() for source in held if source.startswith(MANIFEST_PREFIX)}


def warn_of_overrides(path: Path | None, names: Iterable[str]) -> None:
    """Say which of these modules, just registered, now override a manifest."""
    for name, source in declaring_manifests(path, names).items():
        console.print_warning(f"{name} overrides {source} from now on. `dspy-registry release {name}` ends that.")
