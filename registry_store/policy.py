"""What operators decide about a module or a pool: how many calls at once, how long, and when its circuit opens.

A policy is declared for a pattern. Each field is decided separately: by the module's exact name, else by the longest
pattern that fits, else by `pool:NAME`. For equal patterns a client wins over a manifest, and a manifest over a default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any, Final, NamedTuple

import msgspec

from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.layout import MAX_NAME_BYTES
from dspy_registry.registry_store.validation import stored_name_problems

MODULE: Final = "module:"  # begins the key of a module's own limit
POOL: Final = "pool:"  # begins a pattern for a pool, and the key of its limit
LARGEST_CONCURRENCY: Final = 4096
LONGEST_SECONDS: Final = 86_400.0
LARGEST_WINDOW: Final = 100
"""A reporter sends this many outcomes of a version at once, so that the window of the host is exact."""
MOST_POLICIES: Final = 1024
"""All of them are read whenever one is looked for."""

CLIENT, MANIFEST, DEFAULT = "client", "manifest", "default"
_SOURCES: Final = (CLIENT, MANIFEST, DEFAULT)  # the first wins


class Policy(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Limits of a module or a pool, and the numbers of its circuit. None: not set here. Seconds are real numbers.

    `max_concurrency`: calls at once on this host. Declared for a pool, it counts the calls of all its modules together.
    `max_timeout`: the longest timeout in seconds that `routing_recommendation` gives.
    A circuit looks at the last `window_calls` calls, if they ended within `window_seconds`. It opens if at least
    `failure_share` (0 to 1) of them failed, and at least `minimum_failures`. It is open for `open_seconds`, each time
    twice as long, at most `longest_open_seconds`. After `healthy_seconds` without an opening, it begins with
    `open_seconds` again. `closing_calls` calls in a row must succeed to close it.
    """

    max_concurrency: int | None = None
    max_timeout: float | None = None
    failure_share: float | None = None
    window_calls: int | None = None
    window_seconds: float | None = None
    minimum_failures: int | None = None
    open_seconds: float | None = None
    longest_open_seconds: float | None = None
    healthy_seconds: float | None = None
    closing_calls: int | None = None


FIELDS: Final = Policy.__struct_fields__
_COUNTS: Final = {
    "max_concurrency": LARGEST_CONCURRENCY,
    "window_calls": LARGEST_WINDOW,
    "minimum_failures": LARGEST_WINDOW,
    "closing_calls": LARGEST_WINDOW,
}


class Declaration(NamedTuple):
    """A policy as it was declared. `source` is "client", "manifest" or "default"."""

    pattern: str
    source: str
    policy: Policy


class Limit(NamedTuple):
    """At most `calls` calls at once for all that share `key`: "module:NAME" or "pool:NAME"."""

    key: str
    calls: int


def check_policy(pattern: object, policy: object) -> None:
    """Raises InvalidArgumentError, which names all that is wrong with a pattern and its policy."""
    problems = policy_problems(pattern, policy)
    if problems:
        raise InvalidArgumentError(f"this policy cannot be set: {'; '.join(problems)}.", remedy="Nothing was changed.")


def check_pattern(pattern: object) -> None:
    """Raises InvalidArgumentError, which names all that is wrong with a pattern."""
    problems = tuple(_pattern_problems(pattern))
    if problems:
        raise InvalidArgumentError(f"there can be no policy of this pattern: {'; '.join(problems)}.")


def policy_problems(pattern: object, policy: object) -> tuple[str, ...]:
    """All that is wrong with a pattern and its policy; (): nothing."""
    return (*_pattern_problems(pattern), *_policy_problems(policy))


def effective_policy(declarations: Iterable[Declaration], name: str, pool: str = "") -> Policy:
    """The policy of a module in this pool ("": no pool). `max_concurrency` is the module's own, never its pool's."""
    decided: dict[str, Any] = {}
    for declaration in _by_precedence(declarations, name, pool):
        for field in FIELDS:
            value = getattr(declaration.policy, field)
            if value is not None and not (field == "max_concurrency" and _is_pool(declaration.pattern)):
                decided.setdefault(field, value)
    return Policy(**decided)


def limits_of(declarations: Iterable[Declaration], name: str, pool: str = "") -> tuple[Limit, ...]:
    """The limits that a call of this module must take, in the order in which to take them: sorted by key."""
    declared = list(declarations)
    own = effective_policy(declared, name, pool).max_concurrency
    shared = _pool_concurrency(declared, pool) if pool else None
    found = [Limit(MODULE + name, own)] if own is not None else []
    if shared is not None:
        found.append(Limit(POOL + pool, shared))
    return tuple(sorted(found))


def _pool_concurrency(declarations: Iterable[Declaration], pool: str) -> int | None:
    of_pool = [each for each in declarations if each.pattern == POOL + pool]
    for declaration in sorted(of_pool, key=_source_rank):
        if declaration.policy.max_concurrency is not None:
            return declaration.policy.max_concurrency
    return None


def _by_precedence(declarations: Iterable[Declaration], name: str, pool: str) -> list[Declaration]:
    fitting = [each for each in declarations if fits(each.pattern, name, pool)]
    return sorted(fitting, key=lambda each: (*_pattern_rank(each.pattern, name), _source_rank(each), each.pattern))


def fits(pattern: str, name: str, pool: str = "") -> bool:
    """Whether a pattern fits this module. `*`, `?` and `[…]` have the same meaning as in a shell. Case matters."""
    if _is_pool(pattern):
        return pattern == POOL + pool
    return pattern == name or fnmatchcase(name, pattern)


def _pattern_rank(pattern: str, name: str) -> tuple[int, int]:
    if _is_pool(pattern):
        return 2, 0
    return (0, 0) if pattern == name else (1, -len(pattern))


def _source_rank(declaration: Declaration) -> int:
    return _SOURCES.index(declaration.source)


def _is_pool(pattern: str) -> bool:
    return pattern.startswith(POOL)


def _pattern_problems(pattern: object) -> Iterator[str]:
    text = pattern.removeprefix(POOL) if isinstance(pattern, str) else pattern
    for problem in stored_name_problems(text):
        yield f"pattern{problem.removeprefix('name')}"
    if isinstance(pattern, str) and len(pattern.encode(errors="replace")) > MAX_NAME_BYTES:
        yield f"pattern: longer than {MAX_NAME_BYTES} bytes"


def _policy_problems(policy: object) -> Iterator[str]:
    if type(policy) is not Policy:
        yield f"a {type(policy).__name__} is not a Policy"
        return
    wrong = [problem for field in FIELDS for problem in _field_problems(field, getattr(policy, field))]
    yield from wrong
    if wrong:
        return
    if all(getattr(policy, field) is None for field in FIELDS):
        yield "it sets nothing"
    if None not in (policy.minimum_failures, policy.window_calls) and policy.minimum_failures > policy.window_calls:  # type: ignore[operator]
        yield "minimum_failures is greater than window_calls, so the circuit could never open"


def _field_problems(field: str, value: object) -> Iterator[str]:
    if value is None:
        return
    if field in _COUNTS:
        if type(value) is not int or not 1 <= value <= _COUNTS[field]:
            yield f"{field}: {value!r} is not a whole number from 1 to {_COUNTS[field]}"
        return
    largest = 1.0 if field == "failure_share" else LONGEST_SECONDS
    if type(value) not in (int, float) or not isfinite(value) or not 0 < value <= largest:  # type: ignore[arg-type, operator]
        unit = "" if field == "failure_share" else " seconds"
        yield f"{field}: {value!r} is not a number above 0, at most {largest:g}{unit}"
