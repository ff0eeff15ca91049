"""What people look at in a program: the instructions and the demonstrations of each predictor. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from dspy_registry.registry_store.program_document import FieldShape, ProgramDocument, encode_json


class PredictorText(msgspec.Struct, frozen=True):
    """A predictor as people read it. Each of `demos` is the JSON of one demonstration."""

    name: str
    kind: str
    fields: tuple[FieldShape, ...]
    instructions: str
    demos: tuple[str, ...]


class Difference(msgspec.Struct, frozen=True):
    """A part of a predictor that differs: `old` and `new` have a line for each thing that only one side has."""

    predictor: str
    part: str
    old: tuple[str, ...]
    new: tuple[str, ...]


def predictors_of(document: ProgramDocument) -> tuple[PredictorText, ...]:
    """Its predictors, in the order of the state. Raises CorruptRecordError."""
    state = document.load_state()
    return tuple(
        PredictorText(shape.name, shape.kind, shape.fields, *_learned(state.get(shape.name)))
        for shape in document.predictors
    )


def compared(old: ProgramDocument, new: ProgramDocument) -> Iterator[Difference]:
    """What differs between two programs, predictor by predictor. Raises CorruptRecordError."""
    before, after = ({text.name: text for text in predictors_of(document)} for document in (old, new))
    for name in {**before, **after}:
        sides = [_parts(side.get(name)) for side in (before, after)]
        for part in sides[0]:
            yield from _difference(name, part, sides[0][part], sides[1][part])


def as_dspy_saves(document: ProgramDocument) -> bytes:
    """The JSON that DSPy's `load` takes. Raises CorruptRecordError."""
    metadata = {"dependency_versions": {"dspy": document.dspy_version}}
    return msgspec.json.format(encode_json({**document.load_state(), "metadata": metadata}), indent=2) + b"\n"


def _learned(held: Any) -> tuple[str, tuple[str, ...]]:
    if not isinstance(held, dict):
        return "", ()
    signature, demos = held.get("signature"), held.get("demos")
    said = signature.get("instructions") if isinstance(signature, dict) else ""
    listed = demos if isinstance(demos, list) else []
    return str(said or ""), tuple(encode_json(demo).decode() for demo in listed)


def _parts(text: PredictorText | None) -> dict[str, tuple[str, ...]]:
    if text is None:
        return {"class": (), "fields": (), "instructions": (), "demos": ()}
    fields = tuple(f"{field.role} {field.name}: {field.type}" for field in text.fields)
    return {
        "class": (text.kind,),
        "fields": fields,
        "instructions": tuple(text.instructions.splitlines()),
        "demos": text.demos,
    }


def _difference(name: str, part: str, old: tuple[str, ...], new: tuple[str, ...]) -> Iterator[Difference]:
    if old == new:
        return
    gone, come = tuple(line for line in old if line not in new), tuple(line for line in new if line not in old)
    is_order = not gone and not come
    yield Difference(name, part, old if is_order else gone, new if is_order else come)
