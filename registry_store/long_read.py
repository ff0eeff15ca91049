"""A read transaction for a long look: it outlives the gate, so that other reads go on meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lmdb

from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.handles import Transaction, leak, translated


@contextmanager
def held(environment: Environment) -> Iterator[Transaction]:
    """One revision for the length of a `with`; LMDB stays open meanwhile. Call it outside the gate.

    What the transaction sees takes up room until it ends.
    """
    with environment.gate:
        environment.open()
        try:
            txn = environment.begin_reading()
        except lmdb.Error as error:
            raise translated(error, environment.folder) from error
        environment.open_snapshots += 1
        generation = environment.generation
    try:
        yield txn
    finally:
        with environment.gate:
            if generation == environment.generation:
                txn.abort()
                environment.open_snapshots -= 1
            else:  # inherited through fork: the slot is the parent's
                leak(txn)
