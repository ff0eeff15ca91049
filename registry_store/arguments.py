"""The one rule for the arguments of public methods: exactly these types, else WrongTypeError, a TypeError.

A subclass of str may encode or format as something else than what it equals (an Enum), and 1 equals True: an answer
kept under such a key would be given to those who ask rightly. So the rule is applied before anything is read or kept.
An answer that is kept is also given for a key that is merely equal, because it is right for that one, too. Nothing is
ever kept under a key of another type, which may say of itself that it equals anything.

A module's name, when it is asked for, is a key, as of a dict: what is derived from str and equals a name means that
name. Only plain strings are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from functools import wraps
from types import GenericAlias, NoneType
from typing import Any, Final, ParamSpec, TypeGuard, TypeVar

from dspy_registry.registry_store.errors import InvalidArgumentError

T = TypeVar("T")
P = ParamSpec("P")

NUMBER: Final = (int, float)
_WORDS: Final = {
    str: "a str",
    int: "an int",
    float: "a float",
    bool: "a bool",
    bytes: "bytes",
    NoneType: "None",
}
_PLAIN: Final[dict[str, tuple[type, ...]]] = {
    "str": (str,),
    "int": (int,),
    "float": NUMBER,
    "bool": (bool,),
    "bytes": (bytes,),
    "None": (NoneType,),
}


class WrongTypeError(InvalidArgumentError, TypeError):
    """An argument is of another type than the method takes. Nothing was read or changed."""

    remedy = "Nothing was read or changed."


def wrong_type(what: str, expected: str, value: object) -> WrongTypeError:
    """The error for a value of another type."""
    named = "None" if value is None else type(value).__name__
    remedy = "Give the `value` of the Enum's member." if isinstance(value, Enum) else None
    return WrongTypeError(f"{what} is {expected}, not {named}.", remedy=remedy)


def check_type(argument: str, value: object, *kinds: type) -> None:
    """Raises WrongTypeError for a value that is of none of these types exactly."""
    if type(value) not in kinds:
        raise wrong_type(argument, _named(kinds), value)


def _named(kinds: Iterable[type]) -> str:
    return " or ".join(dict.fromkeys(_WORDS.get(kind, f"a {kind.__name__}") for kind in kinds))


def check_callback(argument: str, value: object) -> None:
    """Raises WrongTypeError for what can neither be called nor is None."""
    if value is not None and not callable(value):
        raise wrong_type(argument, "a function", value)


def plain_name(name: object) -> str:
    """A module's name as a plain string. Raises WrongTypeError for what is no string."""
    if type(name) is str:
        return name
    if not isinstance(name, str):
        raise wrong_type("a module's name", "a str", name)
    return str.__str__(name)


def check_text(argument: str, value: object) -> None:
    """Raises WrongTypeError for what is neither a string nor None."""
    if value is not None and type(value) is not str:
        raise wrong_type(argument, "a str", value)


def check_flag(argument: str, value: object) -> None:
    """Raises WrongTypeError for what is neither True, False nor None."""
    if value is not None and type(value) is not bool:
        raise wrong_type(argument, "a bool", value)


def words_of(argument: str, value: str | Iterable[str] | None) -> tuple[str, ...]:
    """One word or several, as a tuple; None: (). Raises WrongTypeError."""
    if value is not None and not isinstance(value, Iterable):
        raise wrong_type(argument, "a str or several", value)
    words = (value,) if isinstance(value, str) else tuple(value or ())
    for word in words:
        if type(word) is not str:
            raise wrong_type(argument, "a str or several", word)
    return words


def typed(function: Callable[P, T]) -> Callable[P, T]:
    """The function with its arguments checked by their annotations. It costs too much for a read that is kept.

    An annotation of which a part is neither built in nor a class that the function's file has is not checked.
    """
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    rules = {name: _kinds(function.__annotations__.get(name, ""), function.__globals__) for name in names}
    in_order = tuple((at, name, rules[name]) for at, name in enumerate(names) if rules[name])

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        given = len(args)
        for at, name, kinds in in_order:
            if at >= given:
                break
            if type(args[at]) not in kinds:
                raise wrong_type(name, _named(kinds), args[at])
        for name in kwargs:
            kinds = rules.get(name, ())
            if kinds and type(kwargs[name]) not in kinds:
                raise wrong_type(name, _named(kinds), kwargs[name])
        return function(*args, **kwargs)

    return checked


def _kinds(annotation: str, known: dict[str, Any]) -> tuple[type, ...]:
    """The types that an annotation such as `int | None` names; (): not all are known."""
    kinds: list[type] = []
    for word in annotation.split(" | "):
        kind = known.get(word)
        if word in _PLAIN:
            kinds += _PLAIN[word]
        elif _is_class(kind) and not getattr(kind, "_is_protocol", False):
            kinds.append(kind)
        else:
            return ()
    return tuple(kinds)


def _is_class(kind: object) -> TypeGuard[type]:
    """Python 3.10 takes an alias such as `dict[str, int]` for a type, too."""
    return isinstance(kind, type) and not isinstance(kind, GenericAlias)
