"""What the caller of `route` asks, checked once and in one form."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Final, TypeAlias

from msgspec import Struct

from dspy_registry.readers.observed import BASES
from dspy_registry.readers.plan import Plan, plan_find
from dspy_registry.readers.ranking import PREFERENCES
from dspy_registry.registry_store.arguments import NUMBER, WrongTypeError, wrong_type
from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.usage import size_class

Preference: TypeAlias = "str | Callable[[tuple[Any, ...]], Iterable[Any]]"
"""`balanced`, `latency`, `cost`, `reliability`; or a function that gets the candidates and returns them best first."""
Accept: TypeAlias = "Callable[[Any], object]"
"""A function of a candidate: whether it may be chosen."""


class Asked(Struct, frozen=True):
    """`conditions` are those of `find`, in its order; None: all that `names` has. `names` None: all that meet them.

    `size` is a size class.
    """

    conditions: tuple[Any, ...] | None
    names: tuple[str, ...] | None
    size: str
    basis: str
    prefer: Preference
    deadline_ms: float | None
    max_cost_usd: float | None
    exclude: tuple[str, ...]
    accept: Accept | None

    @property
    def among(self) -> tuple[object, ...]:
        """What decides which modules are candidates, and the numbers of each."""
        return self.conditions, self.names, self.size, self.basis

    @property
    def plan(self) -> Plan | None:
        """The plan of the conditions; None: there are none. Raises TypeError, InvalidArgumentError."""
        return None if self.conditions is None else plan_find(*self.conditions)


def asked_for(
    conditions: tuple[Any, ...],
    names: str | Iterable[str] | None,
    input_size: int | None,
    prefer: Preference,
    deadline_ms: float | None,
    max_cost_usd: float | None,
    exclude: str | Iterable[str],
    accept: Accept | None,
    basis: str,
) -> Asked:
    """The arguments in one form.

    Raises InvalidArgumentError, which names all that is wrong but in the conditions; it is a TypeError, too, if any of
    that is of another type.
    """
    wrong = _problems(input_size, prefer, deadline_ms, max_cost_usd, accept, basis)
    if wrong:
        are_typed = _are_typed(input_size, prefer, (deadline_ms, max_cost_usd), accept, basis)
        raise (InvalidArgumentError if are_typed else WrongTypeError)(f"{'; '.join(wrong)}.")
    chosen = None if names is None else names_of("names", names)
    has_none = chosen is not None and all(condition in (None, ()) for condition in conditions)
    return Asked(
        None if has_none else _hashable(conditions),
        chosen,
        size_class(input_size),
        basis,
        prefer,
        deadline_ms,
        max_cost_usd,
        names_of("exclude", exclude) if exclude != () else (),
        accept,
    )


def _hashable(conditions: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same conditions, each list of words as a tuple. What is of a wrong type is found by `plan_find`."""
    for condition in conditions:
        if type(condition) not in _HASHABLE:
            return tuple(tuple(each) if _is_several(each) else each for each in conditions)
    return conditions


def _is_several(condition: object) -> bool:
    return isinstance(condition, Iterable) and not isinstance(condition, str)


_HASHABLE: Final = frozenset((type(None), str, bool, tuple))


def names_of(argument: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """One name or several, each once. Raises TypeError."""
    if not isinstance(given, Iterable):
        raise wrong_type(argument, "a str or several", given)
    names = (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise wrong_type(argument, "a str or several", name)
    return tuple(dict.fromkeys(str.__str__(name) for name in names))


def _problems(
    input_size: object, prefer: object, deadline_ms: object, max_cost_usd: object, accept: object, basis: object
) -> list[str]:
    wrong = []
    if input_size is not None and not (type(input_size) is int and input_size >= 0):
        wrong.append(f"input_size is {input_size!r}; it is a number of characters, 0 or more, or None")
    if not (type(prefer) is str and prefer in PREFERENCES) and not callable(prefer):
        wrong.append(f"prefer is {prefer!r}; it is one of {', '.join(PREFERENCES)}, or a function of the candidates")
    for argument, value in (("deadline_ms", deadline_ms), ("max_cost_usd", max_cost_usd)):
        wrong += amount_problems(argument, value)
    if accept is not None and not callable(accept):
        wrong.append(f"accept is {accept!r}; it is a function of a candidate, or None")
    if not (type(basis) is str and basis in BASES):
        wrong.append(f"basis {basis!r} is not one of {', '.join(BASES)}")
    return wrong


def _are_typed(input_size: object, prefer: object, amounts: tuple[object, ...], accept: object, basis: object) -> bool:
    """Whether these arguments are of the types that they may be."""
    return (
        (input_size is None or type(input_size) is int)
        and all(amount is None or type(amount) in NUMBER for amount in amounts)
        and (type(prefer) is str or callable(prefer))
        and (accept is None or callable(accept))
        and type(basis) is str
    )


def amount_problems(argument: str, value: object) -> list[str]:
    """What is wrong with a limit in milliseconds or dollars; []: nothing."""
    if value is None or (type(value) in NUMBER and _fits(value)):  # type: ignore[arg-type]
        return []
    return [f"{argument} is {value!r}; it is a number, 0 or more, or None"]


def _fits(value: float) -> bool:
    return 0 <= value <= sys.float_info.max or value == inf
