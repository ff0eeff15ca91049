"""The decorator that declares a module beside its code. Discovery reads it; the callback takes the name from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from dspy.utils.callback import with_callbacks

from dspy_registry.registry_store.records import ModuleInfo, Requirements
from dspy_registry.registry_store.validation import validate_module

DECLARED: Final = "__dspy_registry__"
"""The class attribute that holds a declaration, a plain dict. `writer/discovery/facts.py` reads it by this name."""

Class = TypeVar("Class", bound=type)


def module(
    name: str | None = None,
    *,
    category: str | None = None,
    capabilities: Sequence[str] | None = None,
    memory: str | None = None,
    compute: str | None = None,
    gpu: bool | None = None,
    pool_type: str | None = None,
    estimated_duration: int | None = None,
    description: str | None = None,
) -> Callable[[Class], Class]:
    """Declare the class that follows; what is None stays as discovery infers it.

    `name` must lie in the class's own package, None: where the class is public. `estimated_duration` is in
    milliseconds, 0: instant. The fields are those of `ModuleInfo`. A subclass inherits nothing of it. A `__call__` or
    `acall` of the class's own is shown to DSPy's callbacks from then on, so that its calls count. The class itself is
    returned. Raises InvalidModuleError, naming every field that is wrong, and TypeError for `@module` without ().
    """
    if isinstance(name, type):
        raise TypeError("write @module(): the decorator is called, also without arguments.")
    given = {
        "name": name,
        "category": category,
        "capabilities": None if capabilities is None else list(capabilities),
        "memory": memory,
        "compute": compute,
        "gpu": gpu,
        "pool_type": pool_type,
        "estimated_duration": estimated_duration,
        "description": description,
    }
    declared = {key: value for key, value in given.items() if value is not None}
    _check(declared)

    def declare(cls: Class) -> Class:
        setattr(cls, DECLARED, declared)
        for method in ("__call__", "acall"):
            _show(cls, method)
        return cls

    return declare


def declared_name(cls: type) -> str | None:
    """The name that a class is declared by. None: it is not declared, or without a name."""
    declared = vars(cls).get(DECLARED)
    name = declared.get("name") if isinstance(declared, dict) else None
    return name if isinstance(name, str) else None


def _check(declared: dict[str, Any]) -> None:
    needs = {key: declared[key] for key in ("memory", "compute", "gpu") if key in declared}
    fields = {key: declared[key] for key in ("category", "pool_type", "estimated_duration") if key in declared}
    metadata = {"description": declared["description"]} if "description" in declared else {}
    capabilities = tuple(declared.get("capabilities", ()))
    validate_module(
        ModuleInfo(
            declared.get("name", "a.module"),
            capabilities=capabilities,
            requirements=Requirements(**needs),
            metadata=metadata,
            **fields,
        )
    )


def _show(cls: type, name: str) -> None:
    """Let DSPy's callbacks see a method that replaces DSPy's; they see one that goes on to it by `super()` anyway."""
    method = vars(cls).get(name)
    if not inspect.isfunction(method) or hasattr(method, "__wrapped__"):
        return
    if "super" not in method.__code__.co_names:
        setattr(cls, name, with_callbacks(method))
