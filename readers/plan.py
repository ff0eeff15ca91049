"""Query plans: the conditions of `find` as terms, and executing them on the postings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from dspy_registry.registry_store.arguments import check_flag, check_text, words_of, wrong_type
from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.names import ALL
from dspy_registry.registry_store.order import all_names, load_names
from dspy_registry.registry_store.postings import BitMap, blocks_with, load_posting, stored_blocks
from dspy_registry.registry_store.vocabulary import LEVELS

_EVERY: Final = ("native:yes", "native:no")
"""Each module has one of these."""


class Plan(NamedTuple):
    """All elements of `all_of` must hold: one holds for a module with any of its terms. No term of `none_of` may."""

    all_of: tuple[tuple[str, ...], ...] = ()
    none_of: tuple[str, ...] = ()


def plan_find(
    capabilities: str | Iterable[str] | None,
    category: str | None,
    pool_type: str | None,
    native: bool | None,
    gpu: bool | None,
    max_memory: str | None,
    max_compute: str | None,
    any_capabilities: str | Iterable[str] | None = None,
    without_capabilities: str | Iterable[str] | None = None,
) -> Plan:
    """The plan of a query, with the usually rarest terms first.

    Raises TypeError for an argument of another type, InvalidArgumentError for another level.
    """
    for argument, text in (("category", category), ("pool_type", pool_type)):
        check_text(argument, text)
    wanted: list[tuple[str, ...]] = [(f"capability:{word}",) for word in words_of("a capability", capabilities)]
    any_of = tuple(f"capability:{word}" for word in words_of("a capability", any_capabilities))
    none_of = tuple(f"capability:{word}" for word in words_of("a capability", without_capabilities))
    if any_of:
        wanted.append(any_of)
    if category is not None:
        wanted.append((f"category:{category}",))
    if pool_type is not None:
        wanted.append((f"pool:{pool_type}",))
    for kind, flag in (("native", native), ("gpu", gpu)):
        check_flag(kind, flag)
        if flag is not None:
            wanted.append((f"{kind}:yes" if flag else f"{kind}:no",))
    for kind, level in (("memory", max_memory), ("compute", max_compute)):
        check_text(f"max_{kind}", level)
        if level is not None:
            wanted.append(tuple(f"{kind}:{allowed}" for allowed in levels_up_to(level)))
    if none_of and not wanted:
        wanted.append(_EVERY)
    return Plan(tuple(wanted), none_of)


def plan_term(kind: str, word: str) -> Plan:
    """The plan of a query for one `capability` or `category`. Raises TypeError."""
    if type(word) is not str:
        raise wrong_type(f"a {kind}", "a str", word)
    return Plan(((f"{kind}:{word}",),))


def levels_up_to(level: str) -> tuple[str, ...]:
    """This level and those below it. Raises InvalidArgumentError, which lists the four levels."""
    if level not in LEVELS:
        raise InvalidArgumentError(f"{level!r} is not one of {', '.join(LEVELS)}.")
    return LEVELS[: LEVELS.index(level) + 1]


def dependencies(plan: Plan) -> tuple[str, ...]:
    """The terms whose change may change the result."""
    return (*(term for terms in plan.all_of for term in terms), *plan.none_of) or (ALL,)


def execute(txn: Transaction, dbs: Databases, plan: Plan) -> tuple[str, ...]:
    """The names of the modules that meet the plan, in registration order."""
    if not plan.all_of:
        return tuple(all_names(txn, dbs))
    matching: BitMap | None = None
    stored = stored_blocks(txn, dbs)
    blocks: Iterable[int] = stored
    for terms in plan.all_of:
        any_of = BitMap.union(BitMap(), *[load_posting(txn, dbs, term, blocks) for term in terms])
        matching = any_of if matching is None else matching & any_of
        blocks = blocks_with(matching, stored)
        if not matching:
            return ()
    for term in plan.none_of:
        matching = (matching or BitMap()) - load_posting(txn, dbs, term, blocks)
    return load_names(txn, dbs, matching or ())
