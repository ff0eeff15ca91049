"""The one rule for what a question may be: exactly these types, else TypeError.

A subclass of str may encode or format as something else than what it equals (an Enum), and 1 equals True: an answer
kept under such a key would be given to those who ask rightly. So the rule is applied before anything is read or kept.
An answer that is kept is also given for a key that is merely equal, because it is right for that one, too.

A module's name is a key, as of a dict: what is derived from str and equals a name means that name.
"""

from __future__ import annotations

from collections.abc import Iterable


def plain_name(name: object) -> str:
    """A module's name as a plain string. Raises TypeError for what is no string."""
    if type(name) is str:
        return name
    if not isinstance(name, str):
        raise wrong_type("a module's name", "a str", name)
    return str.__str__(name)


def check_text(argument: str, value: object) -> None:
    """Raises TypeError for what is neither a string nor None."""
    if value is not None and type(value) is not str:
        raise wrong_type(argument, "a str", value)


def check_flag(argument: str, value: object) -> None:
    """Raises TypeError for what is neither True, False nor None."""
    if value is not None and type(value) is not bool:
        raise wrong_type(argument, "a bool", value)


def words_of(argument: str, value: str | Iterable[str] | None) -> tuple[str, ...]:
    """One word or several, as a tuple; None: (). Raises TypeError."""
    words = (value,) if isinstance(value, str) else tuple(value or ())
    for word in words:
        if type(word) is not str:
            raise wrong_type(argument, "a str or several", word)
    return words


def wrong_type(what: str, expected: str, value: object) -> TypeError:
    """The error for a value of another type."""
    return TypeError(f"{what} is {expected}, not {type(value).__name__}")
