"""The names under which a class may be registered, as seen by the process that uses it.

Discovery registers a class under its shortest public name. It may have looked through a part of a package only, or
have seen other exports than this process. So all names are reported, and the writer takes the registered one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

MAX_NAMES: Final = 8


def class_names(cls: type) -> tuple[str, ...]:
    """The names of a class, at most MAX_NAMES, best first. The name it is defined under is always one of them."""
    defined = defined_name(cls)
    if cls.__module__ == "__main__":
        return (defined, *_names_as_script(cls))
    public = sorted(set(_public_names(cls)), key=lambda name: _rank(name, cls.__name__))
    return tuple(dict.fromkeys((*public[: MAX_NAMES - 1], defined)))


def defined_name(cls: type) -> str:
    """Module and qualified name; for a class made inside a function, the name of the function comes before its own."""
    return f"{cls.__module__}.{cls.__qualname__}".replace(".<locals>", "")


def _rank(name: str, own: str) -> tuple[int, bool, str]:
    return name.count("."), name.rpartition(".")[2] != own, name


def _names_as_script(cls: type) -> Iterator[str]:
    """`python -m acme.app` runs acme.app as __main__."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name and "." in spec.name:
        yield f"{spec.name}.{cls.__qualname__}".replace(".<locals>", "")


def _public_names(cls: type) -> Iterator[str]:
    root = cls.__module__.partition(".")[0]
    loaded: dict[str, Any] = dict(sys.modules)
    for place, module in loaded.items():
        if not f"{place}.".startswith(f"{root}.") or any(part.startswith("_") for part in place.split(".")):
            continue
        if isinstance(module, ModuleType):
            yield from (f"{place}.{name}" for name in _names_in(module, cls))


def _names_in(module: ModuleType, cls: type) -> Iterator[str]:
    """Names of the class in a module: those in its `__all__`; without one, if the class is defined in or below it."""
    members = dict(vars(module))
    declared = members.get("__all__")
    listed = set(declared) if isinstance(declared, list | tuple) else None
    is_around = f"{cls.__module__}.".startswith(f"{module.__name__}.")
    for name, value in members.items():
        if value is cls and not name.startswith("_") and (is_around if listed is None else name in listed):
            yield name
