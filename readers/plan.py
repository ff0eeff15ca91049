"""Query plans: the conditions of `find` as terms, and executing them on the postings."""

from __future__ import annotations

from collections.abc import Iterable

from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.names import ALL
from dspy_registry.registry_store.order import all_names, load_names
from dspy_registry.registry_store.postings import BitMap, blocks_with, load_posting, stored_blocks
from dspy_registry.registry_store.vocabulary import LEVELS

Plan = tuple[tuple[str, ...], ...]
"""All elements must hold. An element holds for a module that has any one of its terms."""


def plan_find(
    capabilities: str | Iterable[str] | None,
    category: str | None,
    pool_type: str | None,
    native: bool | None,
    gpu: bool | None,
    max_memory: str | None,
    max_compute: str | None,
) -> Plan:
    """The plan of a query, with the usually rarest terms first. Raises InvalidArgumentError for another level."""
    words = (capabilities,) if isinstance(capabilities, str) else tuple(capabilities or ())
    wanted: list[tuple[str, ...]] = [(f"capability:{word}",) for word in words]
    if category is not None:
        wanted.append((f"category:{category}",))
    if pool_type is not None:
        wanted.append((f"pool:{pool_type}",))
    for kind, flag in (("native", native), ("gpu", gpu)):
        if flag is not None:
            wanted.append((f"{kind}:yes" if flag else f"{kind}:no",))
    for kind, level in (("memory", max_memory), ("compute", max_compute)):
        if level is not None:
            wanted.append(tuple(f"{kind}:{allowed}" for allowed in levels_up_to(level)))
    return tuple(wanted)


def levels_up_to(level: str) -> tuple[str, ...]:
    """This level and those below it. Raises InvalidArgumentError, which lists the four levels."""
    if level not in LEVELS:
        raise InvalidArgumentError(f"{level!r} is not one of {', '.join(LEVELS)}.")
    return LEVELS[: LEVELS.index(level) + 1]


def dependencies(plan: Plan) -> tuple[str, ...]:
    """The terms whose change may change the result."""
    return tuple(term for terms in plan for term in terms) or (ALL,)


def execute(txn: Transaction, dbs: Databases, plan: Plan) -> tuple[str, ...]:
    """The names of the modules that meet the plan, in registration order."""
    if not plan:
        return tuple(all_names(txn, dbs))
    matching: BitMap | None = None
    stored = stored_blocks(txn, dbs)
    blocks: Iterable[int] = stored
    for terms in plan:
        any_of = BitMap.union(BitMap(), *[load_posting(txn, dbs, term, blocks) for term in terms])
        matching = any_of if matching is None else matching & any_of
        blocks = blocks_with(matching, stored)
        if not matching:
            return ()
    return load_names(txn, dbs, matching or ())
