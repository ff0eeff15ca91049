"""Setting and removing labels of modules: what these stage on a draft. Pure, but for what the draft reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dspy_registry.registry_store import buckets
from dspy_registry.registry_store.arguments import WrongTypeError
from dspy_registry.registry_store.errors import (
    InvalidArgumentError,
    LabelConflictError,
    NotPossibleError,
    UnknownLabelError,
    UnknownModuleError,
    UnknownVersionError,
)
from dspy_registry.registry_store.labels import (
    DAMAGED,
    MAX_LABELS_OF_MODULE,
    MAX_UPDATES,
    Label,
    LabelUpdate,
    as_weights,
    label_problems,
    names_the_same,
    shown_versions,
    versions_problems,
)
from dspy_registry.registry_store.records import CLIENT
from dspy_registry.registry_store.validation import stored_name_problems
from dspy_registry.registry_store.wording import first_of
from dspy_registry.writer.draft import Draft

_PROBLEMS_SHOWN = 20


def checked(updates: Iterable[LabelUpdate]) -> tuple[LabelUpdate, ...]:
    """The updates, if nothing is wrong with them by themselves. Raises one InvalidArgumentError naming all that is."""
    found: tuple[Any, ...] = tuple(updates)
    others = sorted({type(update).__name__ for update in found if not isinstance(update, LabelUpdate)})
    if others:
        raise WrongTypeError(f"labels are set by LabelUpdates, not by values of type {', '.join(others)}.")
    if len(found) > MAX_UPDATES:
        raise InvalidArgumentError(f"{len(found)} labels are to change in one call, at most {MAX_UPDATES} may.")
    problems = [f"{update.name}@{update.label}: {problem}" for update in found for problem in update_problems(update)]
    seen: set[tuple[str, str]] = set()
    for update in found:
        if (update.name, update.label) in seen:
            problems.append(f"{update.name}@{update.label}: it is given twice")
        seen.add((update.name, update.label))
    if problems:
        raise InvalidArgumentError(
            f"these labels cannot be set: {'; '.join(first_of(problems, _PROBLEMS_SHOWN))}.",
            remedy="Nothing was changed.",
        )
    return found


def update_problems(update: LabelUpdate) -> list[str]:
    """What is wrong with one update by itself, one line each."""
    problems = [*stored_name_problems(update.name), *label_problems(update.label)]
    if update.versions is not None:
        problems += versions_problems(update.versions)
    if update.expected is not None and (update.expected != 0 or isinstance(update.expected, bool)):
        problems += [f"expected: {problem}" for problem in versions_problems(update.expected)]
    return problems


def set_labels(draft: Draft, updates: Iterable[LabelUpdate], source: str = CLIENT) -> None:
    """Stage all updates, or raise what is wrong with the first that cannot be made.

    Raises InvalidArgumentError, UnknownModuleError, UnknownVersionError, UnknownLabelError, LabelConflictError,
    UpgradeRequiredError.
    """
    for update in checked(updates):
        _set_label(draft, update, source)


def _set_label(draft: Draft, update: LabelUpdate, source: str) -> None:
    draft.catalog.dbs.need_format_2("labels")
    name, label = update.name, update.label
    if draft.module(name) is None:
        raise draft.catalog.unknown(name)
    labels = draft.labels_of(name)
    current = labels.get(label)
    if update.expected is not None and not names_the_same(current, update.expected):
        expected: Any = update.expected
        wanted = shown_versions(buckets.targets(as_weights(expected)) if expected else None)
        raise LabelConflictError(name, label, wanted, shown_versions(current.versions if current else None))
    if update.versions is None:
        if current is None:
            raise UnknownLabelError(name, label, labels)
        del labels[label]
    else:
        if current is None and len(labels) >= MAX_LABELS_OF_MODULE:
            raise NotPossibleError(f"{name} has {MAX_LABELS_OF_MODULE} labels, and no module may have more.")
        labels[label] = _label(draft, update, current, source)
        if current is not None and current.runs == labels[label].runs and current.source == source:
            return
    draft.put_labels(name, labels, (label,))


def _label(draft: Draft, update: LabelUpdate, current: Label | None, source: str) -> Label:
    weights = as_weights(update.versions or 0)
    kept = draft.kept_versions(update.name)
    for version in weights:
        if version not in kept:
            raise UnknownVersionError(update.name, version, sorted(kept, reverse=True))
    standing = () if current in (None, DAMAGED) or current is None else current.runs
    return Label(buckets.assign(weights, standing), source, draft.by)


def carry_labels(draft: Draft, old: str, new: str, renumbered: dict[int, int]) -> None:
    """Give a renamed module the labels that it had. `renumbered` has its new number for each labelled version."""
    labels = {
        label: Label(tuple((renumbered[version], length) for version, length in kept.runs), kept.source, draft.by)
        for label, kept in draft.labels_of(old).items()
        if kept is not DAMAGED
    }
    if labels:
        draft.put_labels(new, labels, labels)


def is_in_force(draft: Draft, updates: Iterable[LabelUpdate]) -> bool:
    """Whether all labels are already as these updates leave them."""
    for update in updates:
        try:
            current = draft.labels_of(update.name).get(update.label)
        except UnknownModuleError:
            return False
        wanted = 0 if update.versions is None else update.versions
        if not names_the_same(current, wanted):
            return False
    return True
