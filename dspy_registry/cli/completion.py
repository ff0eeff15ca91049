"""What a shell offers after TAB: names and words of the registry. What cannot be read completes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

import click

from dspy_registry.registry_store.names import DSPY_PREFIX

if TYPE_CHECKING:
    from dspy_registry.readers.snapshot import Snapshot

Source = Callable[["Snapshot", str], Iterable[str]]
Completion = Callable[[click.Context, click.Parameter, str], list[str]]

OFFERED: Final = 200


def _names(snapshot: Snapshot, start: str) -> Iterator[str]:
    """Full names that begin so; when there is none, those in `dspy.` whose own part does."""
    found = False
    for prefix in (start, DSPY_PREFIX + start):
        if not found:
            for name in snapshot.names_starting(prefix):
                found = True
                yield name


def _kept_names(snapshot: Snapshot, start: str) -> Iterator[str]:
    """Names of modules, then those of which only the history knows."""
    return chain(_names(snapshot, start), snapshot.unregistered_names(start))


def _aliases(snapshot: Snapshot, start: str) -> Iterable[str]:
    return snapshot.aliases(start)


def _labels(snapshot: Snapshot, start: str) -> Iterable[str]:
    """The labels of all modules that begin so, each once."""
    found = (label for name in snapshot.labelled_modules() for label in snapshot.labels(name))
    return dict.fromkeys(label for label in found if label.startswith(start))


def _words(kind: str) -> Source:
    return lambda snapshot, start: snapshot.words(kind, start)


def _completion(source: Source) -> Completion:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from dspy_registry.readers.registry import Registry

        try:
            with Registry(context.params.get("path")) as registry, registry.snapshot() as snapshot:
                return list(islice(source(snapshot, incomplete), OFFERED))
        except Exception:  # whatever it is, a traceback amid someone's prompt is no answer
            return []

    return complete


modules = _completion(_names)
kept_modules = _completion(_kept_names)
aliases = _completion(_aliases)
labels = _completion(_labels)
capabilities = _completion(_words("capability"))
categories = _completion(_words("category"))
pools = _completion(_words("pool"))
