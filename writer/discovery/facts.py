"""The raw facts of a class. Runs in the workers' interpreter.

So it uses only the standard library, of Python 3.9 or newer, and nothing of this project. Looking at a
class may run any code of it: callers of `describe` expect any exception.
"""

from __future__ import annotations

import abc
import contextlib
import dis
import importlib
import inspect
import math
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any

Facts = dict[str, Any]

MAX_TEXT = 4000
MAX_ITEMS = 100

ROOTS = {
    "optimizer": ("teleprompt.Teleprompter",),
    "retriever": ("Retrieve", "ColBERTv2", "Embeddings", "KNN"),
    "module": ("Module",),
}
"""The roots of each kind, within `dspy`. The first kind that fits is taken."""

ENTRY_POINTS = {
    "optimizer": ("compile",),
    "retriever": ("forward", "aforward", "__call__"),
    "module": ("forward", "aforward", "__call__", "acall"),
}
"""A concrete class of each kind has at least one of these methods."""

SECRETS = ("key", "token", "secret", "password", "passwd", "passphrase", "credential", "auth")
"""A text is not reported when the name of its parameter contains one of these words."""

DECLARED = "__dspy_registry__"
"""The attribute in which `dspy_registry.integrations.dspy.module` leaves what a class declares of itself."""

DECLARED_TYPES: dict[str, type] = {
    "name": str,
    "category": str,
    "memory": str,
    "compute": str,
    "gpu": bool,
    "pool_type": str,
    "estimated_duration": int,
    "description": str,
}
HARMLESS = (
    "PATH",
    "HOME",
    "PWD",
    "OLDPWD",
    "VIRTUAL_ENV",
    "PYTHON",
    "LANG",
    "LC_",
    "TERM",
    "SHELL",
    "USER",
    "LOGNAME",
    "TZ",
)
"""Beginnings of names of environment variables whose values are reported as any text is."""
SHORTEST_HIDDEN = 4
"""Characters. A shorter value of the environment is not looked for: it would be found everywhere."""
SHORTEST_HIDDEN_INSIDE = 8

_hidden: set[str] = set()

# So that the parameters' names are known even if their annotations cannot be evaluated (PEP 649).
_LAZY: dict[str, Any] = (
    {"annotation_format": importlib.import_module("annotationlib").Format.FORWARDREF}
    if sys.version_info >= (3, 14)
    else {}
)


class Families:
    """The root classes of the installed DSPy, and the public names of its classes."""

    def __init__(self, dspy: types.ModuleType, places: Iterable[types.ModuleType]) -> None:
        self.roots = {kind: tuple(_resolve(dspy, paths)) for kind, paths in ROOTS.items()}
        # dspy.Module.__call__ only calls forward, so it makes no class concrete.
        self._dispatchers = tuple(base for root in self.roots["module"] for base in root.__mro__)
        names: dict[type, list[str]] = {}
        for place in places:
            for name, cls in _public_classes(place):
                names.setdefault(cls, []).append(f"{place.__name__}.{name}")
        self.public = {cls: shortest_name(cls.__name__, found) for cls, found in names.items()}

    def kind_of(self, cls: type) -> str | None:
        """The kind of module that this class is. None for any other class."""
        for kind, roots in self.roots.items():
            if any(base is root for base in cls.__mro__ for root in roots):
                return kind
        if any(str(base.__module__).startswith("dspy.retrievers.") for base in cls.__mro__):
            return "retriever"
        return None

    def describe(self, cls: type, kind: str) -> Facts:
        """Facts ready for JSON. May raise any exception, because it may run code of the class."""
        members = vars(cls)
        return {
            "kind": kind,
            "path": clean(f"{cls.__module__}.{cls.__qualname__}"),
            "abstract": self._is_abstract(cls, kind),
            "mro": [self._name(base) for base in cls.__mro__[1:MAX_ITEMS] if base is not object],
            "parameters": _parameters(cls),
            "doc": _own_text(members.get("__doc__")),
            "init_doc": _own_text(getattr(members.get("__init__"), "__doc__", None)),
            "declared": _declared(members.get(DECLARED)),
            "uses": self._uses(cls) if kind == "module" else [],
            "inputs": _inputs(cls) if kind == "module" else None,
        }

    def _uses(self, cls: type) -> list[str]:
        """The public classes of DSPy that methods of the class name: the predictors that it is made of.

        What its bases name counts too, for those that are not DSPy's.
        """
        found: dict[str, None] = {}
        for base in cls.__mro__:
            for method in () if str(base.__module__).startswith("dspy.") else ("__init__", "forward", "aforward"):
                member = vars(base).get(method)
                code = getattr(member, "__code__", None)
                if isinstance(code, types.CodeType):
                    found.update(dict.fromkeys(self._named(code, member.__globals__)))  # type: ignore[union-attr]
        return list(found)[:MAX_ITEMS]

    def _named(self, code: types.CodeType, known: Mapping[str, Any]) -> Iterator[str]:
        for word in _words(code):
            for value in (known.get(word), getattr(sys.modules.get("dspy"), word, None)):
                if isinstance(value, type) and value in self.public and self.kind_of(value) == "module":
                    yield self.public[value]
                    break

    def _name(self, cls: type) -> str:
        return self.public.get(cls) or clean(f"{cls.__module__}.{cls.__qualname__}")

    def _is_abstract(self, cls: type, kind: str) -> bool:
        if inspect.isabstract(cls) or abc.ABC in cls.__bases__:
            return True
        members: Facts = {}
        for base in reversed(cls.__mro__):
            members.update(vars(base))
        # dspy.Module's metaclass is not ABCMeta, which would have gathered these.
        if any(getattr(value, "__isabstractmethod__", False) is True for value in members.values()):
            return True
        inherited = [vars(base) for base in self._dispatchers]
        return not any(
            name in members
            and not any(members[name] is base.get(name) for base in inherited)
            and not _only_raises(members[name])
            for name in ENTRY_POINTS[kind]
        )


def shortest_name(own: str, names: Iterable[str]) -> str:
    """The shortest of a class's dotted names. At the same depth, the name of its definition wins."""
    return min(names, key=lambda name: (name.count("."), name.rpartition(".")[2] != own, name))


def hide_environment() -> None:
    """From now on, values of the environment are not reported where a default, a docstring or an error has them.

    A package may read a file into the environment while it is imported (`load_dotenv`), so call it after each import.
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_HIDDEN and not name.startswith(HARMLESS) and value not in _hidden:
            _hidden.add(value)
            for kind in (int, float):
                with contextlib.suppress(ValueError):
                    _hidden.add(str(kind(value)))  # as a default has it: 0.7 for "0.70"


def without_environment(text: str) -> str:
    """The text without values of the environment, longest first, of which one may contain another."""
    for value in sorted(_hidden, key=len, reverse=True):
        if text == value:
            return "..."
        if len(value) >= SHORTEST_HIDDEN_INSIDE:
            text = text.replace(value, "...")
    return text


def clean(text: object) -> str:
    """The text, bounded and valid as UTF-8."""
    return str(text)[:MAX_TEXT].encode("utf-8", "replace").decode("utf-8")


def complaint(error: BaseException) -> str:
    """The exception as `ImportError: its text`. Its text may raise, too."""
    try:
        said = without_environment(str(error))[:500]
        return clean(f"{type(error).__name__}: {said}" if said else type(error).__name__)
    except BaseException:
        return clean(type(error).__name__)


def _public_classes(place: types.ModuleType) -> Iterator[tuple[str, type]]:
    listed = getattr(place, "__all__", None)
    for name, value in list(vars(place).items()):
        if isinstance(value, type) and not name.startswith("_") and (not listed or name in listed):
            yield name, value


def _resolve(dspy: types.ModuleType, paths: Iterable[str]) -> list[type]:
    """The classes at these paths, as far as this version of DSPy has them."""
    found = []
    for path in paths:
        with contextlib.suppress(AttributeError):
            found.append(attrgetter(path)(dspy))
    return [cls for cls in found if isinstance(cls, type)]


def _own_text(text: object) -> str | None:
    return clean(without_environment(text)) if isinstance(text, str) else None


def _declared(given: object) -> Facts | None:
    """What the class declares of itself, as far as it is plain: the attribute is the package's, and may hold anything.

    What is left out here stays as discovery infers it; what is wrong otherwise is told when the record is checked.
    """
    if type(given) is not dict:
        return None
    found: Facts = {}
    for field, kind in DECLARED_TYPES.items():
        value = given.get(field)
        if type(value) is kind and _is_bounded(value):
            found[field] = value
    words: Any = given.get("capabilities")
    if type(words) in (list, tuple):
        found["capabilities"] = [clean(without_environment(word)) for word in words[:MAX_ITEMS] if type(word) is str]
    return found


def _is_bounded(value: Any) -> bool:
    if type(value) is str:
        return bool(clean(without_environment(value)) == value)
    return type(value) is bool or value.bit_length() < 64


def _words(code: types.CodeType) -> Iterator[str]:
    """The names in the code of a function and of what is defined in it: before Python 3.12, each comprehension."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _words(inner)


def _only_raises(member: object) -> bool:
    """Whether this method only raises NotImplementedError, so that it is abstract."""
    code = getattr(inspect.unwrap(member), "__code__", None) if callable(member) else None
    if not isinstance(code, types.CodeType) or "NotImplementedError" not in code.co_names:
        return False
    for step in dis.get_instructions(code):
        if step.opname == "RAISE_VARARGS":
            return True
        if step.opname in ("FOR_ITER", "YIELD_VALUE") or "JUMP" in step.opname:
            return False
        if step.opname.startswith("RETURN_") and step.opname != "RETURN_GENERATOR":
            return False
    return False


def _inputs(cls: type) -> list[str] | None:
    """The names of what `forward` takes. None when Python cannot tell."""
    forward: Any = getattr(cls, "forward", None) or getattr(cls, "aforward", None)
    try:
        found = list(inspect.signature(forward, **_LAZY).parameters.values())[1:]
    except BaseException:
        return None
    return [clean(one.name) for one in found[:MAX_ITEMS] if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def _parameters(cls: type) -> list[Facts] | None:
    """The constructor's parameters without self. None when Python cannot tell."""
    init = cls.__init__  # type: ignore[misc]
    if init is object.__init__:
        return []
    try:
        found = list(inspect.signature(init, **_LAZY).parameters.values())[1:]
    except BaseException:
        return None
    return [_parameter(parameter) for parameter in found[:MAX_ITEMS]]


def _parameter(parameter: inspect.Parameter) -> Facts:
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
    has_default = parameter.default is not parameter.empty
    facts: Facts = {
        "name": stars + clean(parameter.name),
        "required": not has_default and not stars,
    }
    if has_default and _is_plain(parameter.default) and not _is_of_environment(parameter.default):
        if _may_be_secret(parameter):
            return facts
        facts["default"] = parameter.default
    return facts


def _may_be_secret(parameter: inspect.Parameter) -> bool:
    """Whether to hide a default: `api_key=os.environ["ACME_KEY"]` is common, and all readers see the report."""
    if not isinstance(parameter.default, str):
        return False
    return "@" in parameter.default or any(word in parameter.name.lower() for word in SECRETS)


def _is_of_environment(value: object) -> bool:
    """A number too: `port=int(os.environ["PORT"])`."""
    text = str(value)
    return text in _hidden or without_environment(text) != text


def _is_plain(value: object) -> bool:
    """Whether to show it: the same in every run. The repr of other objects may contain an address."""
    if type(value) is int:
        return value.bit_length() < 64
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is str:
        return len(value) <= 80 and clean(value) == value
    return value is None or type(value) is bool
