"""The names under which a class may be registered, as seen by the process that uses it.

Discovery registers a class under its shortest public name. It may have looked through a part of a package only, or
have seen other exports than this process. So all names are reported, and the writer takes the registered one. The last
of them is where the class is defined: discovery stores that too, so the writer knows the class by it in any case.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any, Final
from weakref import WeakKeyDictionary

from dspy_registry.integrations.declare import declared_name
from dspy_registry.registry_store.validation import name_problems

MAX_NAMES: Final = 8
NO_MODULE: Final = "unknown"
"""Stands for the module of a class that says none."""


class NamesOf:
    """The names of instances, kept by class. Threads may share it."""

    def __init__(self) -> None:
        self._by_class: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()

    def of(self, instance: Any) -> tuple[str, ...]:
        """The name that the instance says (`registry_name`), else those of its class. Never raises, never empty."""
        said = _said(instance)
        if said is not None:
            return (said,)
        cls = type(instance)
        try:
            names = self._by_class.get(cls)
            if names is None:
                names = self._by_class[cls] = class_names(cls)
        except Exception:  # a metaclass of the program may raise anything
            names = (f"{NO_MODULE}.{type.__dict__['__name__'].__get__(cls)}",)
        return names


def _said(instance: Any) -> str | None:
    try:
        said = getattr(instance, "registry_name", None)
    except Exception:  # a property of the program may raise anything
        return None
    return said if type(said) is str and _is_name(said) else None


@lru_cache(maxsize=1024)
def _is_name(name: str) -> bool:
    return not name_problems(name)


def class_names(cls: type) -> tuple[str, ...]:
    """The names of a class, at most MAX_NAMES, best first: that of its declaration, then those where it is public.

    The name it is defined under is always one of them.
    """
    defined = defined_name(cls)
    declared = [name for name in (declared_name(cls),) if name is not None]
    if _module_of(cls) == "__main__":
        return (*declared, defined, *_names_as_script(cls))
    public = sorted(set(_public_names(cls)), key=lambda name: _rank(name, cls.__name__))
    return tuple(dict.fromkeys((*[*declared, *public][: MAX_NAMES - 1], defined)))


def defined_name(cls: type) -> str:
    """Module and qualified name; for a class made inside a function, the name of the function comes before its own."""
    return f"{_module_of(cls)}.{cls.__qualname__}".replace(".<locals>", "")


def _module_of(cls: type) -> str:
    module = getattr(cls, "__module__", None)
    return module if isinstance(module, str) and module else NO_MODULE


def _rank(name: str, own: str) -> tuple[int, bool, str]:
    return name.count("."), name.rpartition(".")[2] != own, name


def _names_as_script(cls: type) -> Iterator[str]:
    """`python -m acme.app` runs acme.app as __main__."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name and "." in spec.name:
        yield f"{spec.name}.{cls.__qualname__}".replace(".<locals>", "")


def _public_names(cls: type) -> Iterator[str]:
    root = _module_of(cls).partition(".")[0]
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
    is_around = f"{_module_of(cls)}.".startswith(f"{module.__name__}.")
    for name, value in members.items():
        if value is cls and not name.startswith("_") and (is_around if listed is None else name in listed):
            yield name
