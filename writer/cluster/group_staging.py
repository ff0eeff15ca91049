"""A group of changes, staged for one transaction of the cluster. Pure but for what it reads of this host."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final

from dspy_registry.registry_store.cluster_rows import Position
from dspy_registry.registry_store.layout import MODULES
from dspy_registry.registry_store.protocol import (
    Register,
    RegisterMany,
    Release,
    RemoveAlias,
    Rename,
    SetAlias,
    SetImplications,
    SetLabels,
    SetPolicy,
    SteerRollout,
    Unregister,
)
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.cluster.batches import placed_puts
from dspy_registry.writer.cluster.following import load_position
from dspy_registry.writer.cluster.keys import Keys
from dspy_registry.writer.cluster.staged import Staged
from dspy_registry.writer.cluster.staging import GlobalRequest, global_changes, removed_prefixes
from dspy_registry.writer.daemon.group import Group, Work
from dspy_registry.writer.daemon.publication import PublicationRequest
from dspy_registry.writer.daemon.requests import BatchRequest, DiscoveryRequest, SingleRequest
from dspy_registry.writer.draft import Draft

_GLOBAL: Final = (
    Register,
    RegisterMany,
    Unregister,
    SetAlias,
    RemoveAlias,
    SetImplications,
    SetLabels,
    SetPolicy,
    SteerRollout,
    Release,
    Rename,
)


def is_global(request: Work) -> bool:
    """Whether the cluster has to accept it. What discovery finds and statistics are of this host."""
    if isinstance(request, SingleRequest):
        return isinstance(request.message, _GLOBAL)
    is_batch = isinstance(request, BatchRequest) and not isinstance(request, DiscoveryRequest)
    return is_batch or isinstance(request, PublicationRequest)


def may_move(works: Iterable[GlobalRequest]) -> bool:
    """Whether a group may be staged before its turn: it reads nothing but what it is to write. See `ahead`."""
    return all(isinstance(work.request, SingleRequest) and type(work.request.message) is Register for work in works)


def names_read(works: Iterable[GlobalRequest], staged: Staged, catalog: Catalog) -> dict[bytes, bytes | None] | None:
    """The modules that a group has read the records of, once it is staged, with these records; None: it may have read
    anything."""
    names = {work.reads for work in works}
    if None in names or staged.held or staged.removed or staged.programs or staged.is_too_large:
        return None
    return {name: catalog.row(MODULES, name) for name in names if name is not None}


def staged_group(catalog: Catalog, keys: Keys, unlisted: Position, group: Group, held: Mapping[bytes, int]) -> Staged:
    """Stage a group on what this host shows; `unlisted` is its position while it has stored none.

    `held` are revisions that keys must still have: see `Staged`.
    """
    position = load_position(catalog) or unlisted
    draft = Draft(catalog)
    group.stage(draft)
    found = global_changes(draft)
    number = position.number + 1
    return Staged(
        position,
        group,
        os.urandom(16),
        placed_puts(keys, number, found.puts),
        {client: dump(number) for client, dump in draft.requests.items() if dump is not None},
        found.is_repeated,
        found.puts,
        dict(held),
        held,
        removed_prefixes(keys, found),
        {digest: draft.programs.get(digest, ()) for digest in found.programs},
        found.frees,
    )
