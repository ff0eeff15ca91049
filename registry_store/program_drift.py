"""How the predictors of a published program differ from those of the code here: each difference by name. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dspy_registry.registry_store.program_document import FieldShape, PredictorShape


def drift(published: Sequence[PredictorShape], here: Sequence[PredictorShape]) -> tuple[str, ...]:
    """What differs, one line each. Empty: the state fits."""
    old, new = {shape.name: shape for shape in published}, {shape.name: shape for shape in here}
    lines = [f"predictor {name}: missing here" for name in old if name not in new]
    lines += [
        f"predictor {name}: additional here, and the published program has no state of it"
        for name in new.keys() - old.keys()
    ]
    for name, shape in old.items():
        if name in new:
            lines += _of_predictor(shape, new[name])
    if not lines and list(old) != list(new):
        lines.append(f"predictors are in another order here: {', '.join(new)}")
    return tuple(lines)


def _of_predictor(old: PredictorShape, new: PredictorShape) -> Iterator[str]:
    where = f"predictor {old.name}"
    if old.kind != new.kind:
        yield f"{where}: is a {new.kind} here, and was a {old.kind}"
    before, after = ({field.name: field for field in shape.fields} for shape in (old, new))
    renamed = _renamed(old.fields, new.fields)
    for field in old.fields:
        if field.name in renamed:
            yield f"{where}: field {field.name} is called {renamed[field.name]} here"
        elif field.name not in after:
            yield f"{where}: field {field.name} is missing here"
        else:
            yield from _of_field(where, field, after[field.name])
    for field in new.fields:
        if field.name not in before and field.name not in renamed.values():
            yield f"{where}: field {field.name} is additional here"
    if before.keys() == after.keys() and list(before) != list(after):
        yield f"{where}: fields are in another order here: {', '.join(after)}, and were {', '.join(before)}"


def _of_field(where: str, old: FieldShape, new: FieldShape) -> Iterator[str]:
    if old.type != new.type:
        yield f"{where}: field {old.name} has the type {new.type} here, and had {old.type}"
    if old.role != new.role:
        yield f"{where}: field {old.name} is an {new.role} here, and was an {old.role}"


def _renamed(old: Sequence[FieldShape], new: Sequence[FieldShape]) -> dict[str, str]:
    """Fields that have another name at the same place, and are otherwise the same."""
    if len(old) != len(new):
        return {}
    names, others = {field.name for field in old}, {field.name for field in new}
    return {
        before.name: after.name
        for before, after in zip(old, new, strict=True)
        if before.name not in others
        and after.name not in names
        and (before.type, before.role) == (after.type, after.role)
    }
