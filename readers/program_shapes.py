"""What a DSPy program looks like, as text: its predictors, their fields in order, and the types of these.

The text of a type is the same in every process. A model, a dataclass and an enumeration are written out with what they
hold, because a changed one parses otherwise under the same name.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Any, Final

from dspy_registry.registry_store.program_document import FieldShape, PredictorShape, Role

_ROLE: Final = "__dspy_field_type"
_DEEPEST: Final = 8


def shapes_of(program: Any) -> tuple[PredictorShape, ...]:
    """The predictors of a program, in the order of its state."""
    return tuple(
        PredictorShape(name, class_path_of(parameter), _fields_of(parameter))
        for name, parameter in program.named_parameters()
    )


def class_path_of(instance: Any) -> str:
    """Where the class of an object is: `package.module:Name`."""
    cls = instance if isinstance(instance, type) else type(instance)
    return f"{cls.__module__}:{cls.__qualname__}"


def _fields_of(parameter: Any) -> tuple[FieldShape, ...]:
    signature = getattr(parameter, "signature", None)
    fields: dict[str, Any] = getattr(signature, "fields", None) or {}
    return tuple(FieldShape(name, _role_of(field), type_text(field.annotation)) for name, field in fields.items())


def _role_of(field: Any) -> Role:
    extra = field.json_schema_extra
    return "input" if isinstance(extra, dict) and extra.get(_ROLE) == "input" else "output"


def type_text(annotation: Any, above: tuple[type, ...] = ()) -> str:
    """The text of a type. A type that holds itself is written out once."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0], above)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(argument, above) for argument in arguments)
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin is not None:
        inner = ", ".join("..." if argument is ... else type_text(argument, above) for argument in arguments)
        return f"{_name_of(origin)}[{inner}]"
    if annotation is type(None):
        return "None"
    if not isinstance(annotation, type):
        return repr(annotation)
    held = {} if annotation in above or len(above) >= _DEEPEST else _held_by(annotation)
    inside = ", ".join(
        f"{name}: {value if isinstance(value, str) else type_text(value, (*above, annotation))}"
        for name, value in held.items()
    )
    return f"{_name_of(annotation)}{{{inside}}}" if inside else _name_of(annotation)


def _name_of(cls: Any) -> str:
    name = getattr(cls, "__qualname__", None) or repr(cls)
    module = getattr(cls, "__module__", "builtins")
    return name if module in ("builtins", "typing") else f"{module}.{name}"


def _held_by(cls: type) -> dict[str, Any]:
    """The types of what an instance holds, or the values of an enumeration as text, by name."""
    if issubclass(cls, enum.Enum):
        return {name: repr(member.value) for name, member in cls.__members__.items()}
    if cls.__module__.partition(".")[0] == "dspy":
        return {}
    model_fields = getattr(cls, "model_fields", None)
    if isinstance(model_fields, dict):
        return {name: field.annotation for name, field in model_fields.items()}
    if dataclasses.is_dataclass(cls):
        return {field.name: field.type for field in dataclasses.fields(cls)}
    return {}
