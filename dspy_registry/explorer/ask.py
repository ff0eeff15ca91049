"""Ask the registry: the question of `route` as a form has it, its answer, and the same in Python and as a command."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import Query
from pydantic import Field

from dspy_registry.explorer.filters import Conditions, Word, Words, command, split
from dspy_registry.explorer.number_fields import EMPTY_IS_NONE, NUMBER, WHOLE
from dspy_registry.readers.queries import Queries
from dspy_registry.readers.route import Candidate, Route
from dspy_registry.registry_store.errors import InvalidArgumentError, NoCandidateError

SHOWN: Final = 50
"""Candidates, and exclusions, of one answer. The answer tells how many there are."""


Characters = Annotated[Annotated[int, Field(ge=0, le=2**53)] | None, WHOLE, EMPTY_IS_NONE]
Amount = Annotated[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, NUMBER, EMPTY_IS_NONE]


class Question(Conditions):
    """The arguments of `Registry.route`. An empty one is left out, as a form sends it."""

    names: Words = Field(default=[], description="Full names, aliases or short names of the candidates.")
    label: Word = Field(default="", description="The label that every name without one gets.")
    key: Word = Field(default="", description="Who is asked for: labels with weights mean one version for each key.")
    input_size: Characters = Field(default=None, description="Length of the input in characters.")
    prefer: Literal["balanced", "latency", "cost", "reliability"] = "balanced"
    deadline_ms: Amount = Field(default=None, description="Milliseconds.")
    max_cost_usd: Amount = Field(default=None, description="US dollars for one call.")
    exclude: Words = Field(default=[], description="Names that are not to be chosen.")
    basis: Literal["auto", "observed", "declared"] = "auto"

    def route_arguments(self) -> dict[str, Any]:
        """The arguments that differ from the defaults of `route`."""
        found = self.arguments()
        for field in ("names", "exclude"):
            if words := split(getattr(self, field)):
                found[field] = words
        if label := self.label.strip():
            found["label"] = label
        if self.key:  # as it is: another blank is another key
            found["key"] = self.key
        for field in ("input_size", "deadline_ms", "max_cost_usd"):
            if (value := getattr(self, field)) is not None:
                found[field] = value
        for field in ("prefer", "basis"):
            if (value := getattr(self, field)) != type(self).model_fields[field].default:
                found[field] = value
        return found


QuestionQuery = Annotated[Question, Query()]


def answer(registry: Queries, question: Question, folder: str | None) -> dict[str, Any]:
    """The decision for JSON and the page. Nothing left is an answer too: `chosen` is None.

    Raises InvalidArgumentError for a question without names and conditions, UnknownModuleError, AmbiguousNameError.
    """
    arguments = question.route_arguments()
    if not (question.arguments() or "names" in arguments):
        raise InvalidArgumentError("give at least one name or one condition: without them, every module is ranked.")
    same = {"python": as_python(arguments), "command": as_command(arguments, folder)}
    try:
        route = registry.route(**arguments)
    except NoCandidateError as error:
        why = error.message if not error.excluded else "every candidate is left out; the reasons are below."
        return {"chosen": None, "why": why, "candidates": [], **_excluded(list(error.excluded)), **same}
    return {**_answer(route), **same}


def _answer(route: Route) -> dict[str, Any]:
    alternatives = route.alternatives
    return {
        "chosen": {"name": route.name, "version": route.version},
        "degraded": route.degraded,
        "revision": route.revision,
        "usage_word": route.usage_word,
        "health_word": route.health_word,
        "candidates": [_candidate(each) for each in alternatives[:SHOWN]],
        "candidate_count": len(alternatives),
        **_excluded([tuple(each) for each in route.excluded]),
    }


def _candidate(each: Candidate) -> dict[str, Any]:
    return {
        "name": each.name,
        "version": each.version,
        "score": each.score,
        "expected_ms": each.expected_ms,
        "cost": each.cost,
        "cost_unit": each.cost_unit,
        "failure_rate": each.failure_rate,
        "is_probe": each.is_probe,
        "recommendation": msgspec.structs.asdict(each.recommendation),
    }


def _excluded(excluded: list[tuple[Any, ...]]) -> dict[str, Any]:
    fields = ("name", "version", "reason", "detail")
    return {
        "excluded": [dict(zip(fields, each, strict=False)) for each in excluded[:SHOWN]],
        "excluded_count": len(excluded),
    }


def as_python(arguments: dict[str, Any]) -> str:
    """The call that asks the same."""
    return f"registry.route({', '.join(f'{field}={value!r}' for field, value in arguments.items())})"


def as_command(arguments: dict[str, Any], folder: str | None) -> str:
    """The command that asks the same."""
    conditions = {field: value for field, value in arguments.items() if field in Conditions.model_fields}
    names = arguments.get("names", ())
    is_odd = any(name.startswith("-") for name in names)  # it would be taken for an option
    words = ["dspy-registry", "route", *(() if is_odd else names), *command(conditions)]
    for field, option in _OPTIONS.items():
        if field in arguments:
            value = arguments[field]
            words += (option, str(value).removesuffix(".0") if isinstance(value, float) else str(value))
    for name in arguments.get("exclude", ()):
        words += ("--exclude", name)
    words.append("--explain")
    words += ("--path", folder) if folder is not None else ()
    return shlex.join([*words, *(("--", *names) if is_odd else ())])


_OPTIONS: Final = {
    "label": "--label",
    "key": "--key",
    "input_size": "--input-size",
    "prefer": "--prefer",
    "deadline_ms": "--deadline",
    "max_cost_usd": "--max-cost",
    "basis": "--basis",
}
