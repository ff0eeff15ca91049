"""What a shell offers after TAB: names and words of the registry. What cannot be read completes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import click

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.history import kept_names
from dspy_registry.registry_store.names import DSPY_PREFIX
from dspy_registry.registry_store.paths import registry_path
from dspy_registry.registry_store.sharing import attach, detach

Source = Callable[[Transaction, Databases, str], Iterator[str]]
Completion = Callable[[click.Context, click.Parameter, str], list[str]]

OFFERED: Final = 200


def _names(txn: Transaction, dbs: Databases, start: str) -> Iterator[str]:
    """Full names that begin so; when there is none, those in `dspy.` whose own part does."""
    found = False
    for prefix in (start, DSPY_PREFIX + start):
        if not found:
            for key in _keys(txn, dbs.modules, prefix.encode()):
                found = True
                yield key.decode()


def _kept_names(txn: Transaction, dbs: Databases, start: str) -> Iterator[str]:
    """Names of modules, then those of which only the history knows."""
    yield from _names(txn, dbs, start)
    for name in kept_names(txn, dbs, start):
        if txn.get(name.encode(), None, dbs.modules) is None:
            yield name


def _aliases(txn: Transaction, dbs: Databases, start: str) -> Iterator[str]:
    return (key.decode() for key in _keys(txn, dbs.aliases, start.encode()))


def _keys(txn: Transaction, database: Any, prefix: bytes) -> Iterator[bytes]:
    cursor = txn.cursor(database)
    found = cursor.set_range(prefix) if prefix else cursor.first()
    while found and cursor.key().startswith(prefix):
        yield cursor.key()
        found = cursor.next()


def words(txn: Transaction, dbs: Databases, kind: str, start: str) -> Iterator[str]:
    """What modules have of a kind (capability, category, pool), as far as it begins so."""
    cursor = txn.cursor(dbs.postings)
    prefix = f"{kind}:{start}".encode()
    found = cursor.set_range(prefix)
    while found and cursor.key().startswith(prefix):
        term = cursor.key().partition(b"\0")[0]
        yield term.decode().partition(":")[2]
        # Past every block of this term.
        found = cursor.set_range(layout.posting_key(term, 0xFFFF) + b"\0")


def _words(kind: str) -> Source:
    return lambda txn, dbs, start: words(txn, dbs, kind, start)


def _completion(source: Source) -> Completion:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        try:
            environment = attach(registry_path(context.params.get("path")))
            try:
                with environment.reading() as txn:
                    return list(islice(source(txn, environment.dbs, incomplete), OFFERED))
            finally:
                detach(environment)
        except Exception:  # whatever it is, a traceback amid someone's prompt is no answer
            return []

    return complete


modules = _completion(_names)
kept_modules = _completion(_kept_names)
aliases = _completion(_aliases)
capabilities = _completion(_words("capability"))
categories = _completion(_words("category"))
pools = _completion(_words("pool"))
