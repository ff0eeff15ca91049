"""What a draft changes about labels and overrides: computed from the old and the new state, and pure."""

from __future__ import annotations

from collections.abc import Iterator

from dspy_registry.registry_store.changes import LabelChange
from dspy_registry.registry_store.labels import Label, labelled_versions
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.layout import HISTORY_VERSIONS
from dspy_registry.registry_store.records import StoredModule
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry


def labels_after(draft: Draft, name: str) -> dict[str, Label]:
    """The labels of a module as this draft leaves them."""
    staged = draft.labels.get(name)
    return draft.catalog.labels(name) if staged is None else staged


def changed_labels(draft: Draft) -> Iterator[tuple[LabelChange, Label | None]]:
    """Each label that the draft changes, and what it is afterwards; None: it is removed."""
    for name, labels in draft.labels.items():
        before = draft.catalog.labels(name)
        for label in {**before, **labels}:
            old, new = before.get(label), labels.get(label)
            if old != new:
                yield _change(draft, name, label, old, new), new


def _change(draft: Draft, name: str, label: str, old: Label | None, new: Label | None) -> LabelChange:
    was, now = (tuple(found.versions.items()) if found else () for found in (old, new))
    source = new.source if new else old.source if old else ""
    return LabelChange(name, label, was, now, source, draft.label_authors.get((name, label)))


def released_versions(draft: Draft) -> Iterator[tuple[str, int]]:
    """(name, version) of each version that only a label kept, and that no label names any longer."""
    for name, labels in draft.labels.items():
        before = draft.catalog.labels(name).values()
        for version in labelled_versions(before) - labelled_versions(labels.values()):
            if version <= _newest_past(draft, name) - HISTORY_VERSIONS:
                yield name, version


def _newest_past(draft: Draft, name: str) -> int:
    """The newest version of a module in the history, after this draft. 0: there is none."""
    entry = draft.module(name)
    if entry is not None:
        return entry.version - 1
    past = draft.dropped.get(name, ())
    stored = draft.catalog.module(name)
    return past[-1].version if past else stored.provenance.version if stored else draft.catalog.last_version(name)


def is_override_changed(draft: Draft, name: str, stored: StoredModule | None, entry: Entry | None) -> bool:
    """Whether a module becomes an override of what other sources declare, or ends as such."""
    old = stored is not None and stored.provenance.source == CLIENT
    new = entry is not None and entry.source == CLIENT
    staged = draft.layers.get(name)
    if old == new and staged is None:
        return False
    before = draft.catalog.layers(name) if stored is not None else {}  # without a record there are no layers
    after = before if staged is None else staged
    return (old and bool(before)) != (new and bool(after))
