"""Labels: names for one version of a module, or for several with weights. Pure, but for the reads of one transaction.

A label with one version is a table whose buckets all have this version, so there is one form. See `buckets`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import msgspec

from dspy_registry.registry_store import buckets
from dspy_registry.registry_store.arguments import typed, wrong_type
from dspy_registry.registry_store.buckets import BUCKETS, Run
from dspy_registry.registry_store.codec import Sealed, key_text
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layout import LABELS, LAST_VERSION, label_key
from dspy_registry.registry_store.records import CLIENT, By
from dspy_registry.registry_store.scan import items_with_prefix, value_at

LATEST: Final = "latest"
"""`name@latest` is the version in force. No label has this name."""

MAX_LABELS_OF_MODULE: Final = 64
"""Each of them may keep MAX_VERSIONS versions in the history."""

MAX_UPDATES: Final = 128
"""Labels that change in one call. More would not fit into one message, if each names as many versions as it may."""

_WORD: Final = r"[A-Za-z][A-Za-z0-9_.-]{0,63}\Z"  # compiled at its first use: most workers set no label

Weights: TypeAlias = Mapping[int, float]
"""Weights by version. Only their proportions count."""


class Label(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a label of a module names. `runs` are its buckets, in a row.

    `source` set it, in `revision`, at `updated_at` (milliseconds since the epoch). `by` asked for it; None: not known.
    """

    runs: tuple[Run, ...]
    source: str = CLIENT
    by: By | None = None
    revision: int = 0
    updated_at: int = 0

    @property
    def versions(self) -> dict[int, int]:
        """How many of the 10,000 buckets each version has, by version; a new dict."""
        return dict(sorted(buckets.shares(self.runs).items()))

    @property
    def percents(self) -> dict[str, float]:
        """The share of each version in percent, by version as text, for JSON; a new dict."""
        return {str(version): 100 * count / BUCKETS for version, count in self.versions.items()}

    @property
    def heaviest(self) -> int:
        """The version that the label means without a key."""
        return buckets.heaviest(self.runs)


label_codec = Sealed(Label, "a label", LABELS)

DAMAGED: Final = Label((), "")
"""A label whose bytes cannot be read: it names no version, until it is set again or removed."""


class LabelUpdate(msgspec.Struct, frozen=True):
    """One change of a label. `name` is the module's full name.

    `versions` is what the label is to name: a version, weights by version, or None: the label is removed. `expected` is
    what it must name now, in the same form; 0: it must not be set; None: it may name anything.
    """

    name: str
    label: str
    versions: int | dict[int, float] | None
    expected: int | dict[int, float] | None = None


@typed
def label_update(name: str, label: str, versions: int | Weights, expected: int | Weights | None = None) -> LabelUpdate:
    """An update with copies of the weights. What is wrong with it is told later, together with everything else.

    Raises WrongTypeError.
    """
    return LabelUpdate(
        name, label, _plain("versions", versions), None if expected is None else _plain("expected", expected)
    )


@typed
def label_removal(name: str, label: str, expected: int | Weights | None = None) -> LabelUpdate:
    """The update that removes a label. Raises WrongTypeError."""
    return LabelUpdate(name, label, None, None if expected is None else _plain("expected", expected))


def _plain(argument: str, versions: int | Weights) -> Any:
    """A version or a copy of weights."""
    if isinstance(versions, Mapping):
        return dict(versions)
    if type(versions) is not int:
        raise wrong_type(argument, "a version or weights by version", versions)
    return versions


def as_weights(versions: int | Weights) -> dict[int, float]:
    """A version, or weights by version, as weights."""
    return {versions: 1} if isinstance(versions, int) else dict(versions)


def names_the_same(label: Label | None, versions: int | Weights) -> bool:
    """Whether a label has these versions, in this proportion. 0: whether there is no such label."""
    if label is None or versions == 0:
        return label is None and versions == 0
    wanted = as_weights(versions)
    return not buckets.weight_problems(wanted) and buckets.targets(wanted) == label.versions


def label_problems(label: object) -> tuple[str, ...]:
    """What is wrong with a name for a label; empty when nothing is."""
    if not isinstance(label, str) or type(label) is not str or not re.match(_WORD, label):
        return ("a label is a letter, then at most 63 letters, digits, '_', '.' or '-'",)
    return (f"{LATEST} always means the version in force",) if label == LATEST else ()


def versions_problems(versions: object) -> list[str]:
    """What is wrong with what a label is to name, one line each."""
    if not isinstance(versions, int | Mapping) or isinstance(versions, bool):
        return [f"it names {versions!r}, which is neither a version nor weights by version"]
    weights = as_weights(versions)
    wrong = [version for version in weights if not _is_version(version)]
    return [f"{version!r} is no version" for version in wrong] or buckets.weight_problems(weights)


def _is_version(version: object) -> bool:
    return isinstance(version, int) and not isinstance(version, bool) and 0 < version <= LAST_VERSION


def shown_versions(versions: Mapping[int, int] | None) -> str:
    """Versions by buckets as people write them: `3`, or `3=90 4=10`, in percent. None: `-`."""
    if not versions:
        return "-"
    if len(versions) == 1:
        return str(next(iter(versions)))
    return " ".join(f"{version}={100 * count / BUCKETS:g}" for version, count in sorted(versions.items()))


# Reads


def load_label(txn: Transaction, dbs: Databases, name: str, label: str) -> Label | None:
    """A label of the module of this full name. None: it is not set. Raises CorruptRecordError."""
    if label_problems(label):
        return None
    key = label_key(name, label)
    value = value_at(txn, dbs.labels, key)
    return None if value is None else label_codec.load(value, key, dbs.format)


def labels_of(txn: Transaction, dbs: Databases, name: str, *, are_damages_told: bool = True) -> dict[str, Label]:
    """The labels of the module of this full name, in alphabetical order.

    Raises CorruptRecordError; where damages are not told, a damaged label names no version.
    """
    prefix = label_key(name, "")
    found: dict[str, Label] = {}
    for key, value in items_with_prefix(txn, dbs.labels, prefix):
        try:
            label = label_codec.load(value, key, dbs.format)
        except CorruptRecordError:
            if are_damages_told:
                raise
            label = DAMAGED
        found[key_text(key[len(prefix) :])] = label
    return found


def label_names(txn: Transaction, dbs: Databases, name: str) -> list[str]:
    """The names of a module's labels, damaged ones too, in alphabetical order."""
    prefix = label_key(name, "")
    return [key_text(key[len(prefix) :]) for key, _ in items_with_prefix(txn, dbs.labels, prefix)]


def labelled_versions(labels: Iterable[Label]) -> set[int]:
    """The versions that any of these labels names."""
    return {version for label in labels for version, _ in label.runs}
