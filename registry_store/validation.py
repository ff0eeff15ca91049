"""What may enter the registry. One error names every field that is wrong.

Containers are normalised: a list of capabilities becomes a tuple. Nothing else is changed, so a reader gets the
values that were registered.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from math import isfinite
from numbers import Real
from types import NoneType
from typing import Any

import msgspec

from dspy_registry.registry_store.arguments import check_type
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.errors import InvalidArgumentError, InvalidModuleError
from dspy_registry.registry_store.layout import (
    LAST_VERSION,
    MAX_CAPABILITIES,
    MAX_DURATION_MS,
    MAX_METADATA_DEPTH,
    MAX_NAME_BYTES,
    MAX_RECORD_BYTES,
    MAX_RECORD_VALUES,
    MAX_TERM_BYTES,
)
from dspy_registry.registry_store.plain_values import (
    LARGEST_INT,
    SMALLEST_INT,
    is_plain_text,
    is_utf8,
    plain_size,
)
from dspy_registry.registry_store.records import ModuleInfo, Requirements
from dspy_registry.registry_store.vocabulary import LEVELS, is_capability
from dspy_registry.registry_store.wording import listed, shown_value

_OWN_FIELDS = frozenset(("memory", "compute", "gpu"))


def validate_module(info: ModuleInfo, most_values: int = MAX_RECORD_VALUES) -> ModuleInfo:
    """The module, normalised. Raises InvalidModuleError naming every field that is wrong.

    `most_values` is how many values it may hold. Release 0.1.0 stored as many as fit into the largest record.
    """
    return validate_encoded(info, most_values)[0]


def validate_encoded(
    info: ModuleInfo, most_values: int = MAX_RECORD_VALUES, *, is_registered: bool = False
) -> tuple[ModuleInfo, bytes]:
    """The module, normalised, and its canonical encoding. Raises InvalidModuleError.

    A module that `is_registered` may have a name of an earlier release's rule: see `stored_name_problems`.
    """
    if type(info) is not ModuleInfo:  # a field that a subclass adds would take the place of one of a later release
        raise InvalidModuleError(f"a {type(info).__name__}", ("register takes ModuleInfo records",))
    if not _is_plainly_sound(info, most_values):
        info = _normalised(info)
        problems = tuple(module_problems(info, most_values, is_registered=is_registered))
        if problems:
            raise InvalidModuleError(_subject(info.name), problems)
    encoded = encode(info)
    if len(encoded) > MAX_RECORD_BYTES:
        problem = f"record: {len(encoded)} bytes encoded, the limit is {MAX_RECORD_BYTES}"
        raise InvalidModuleError(_subject(info.name), (problem,))
    return info, encoded


def check_expected_version(version: object) -> None:
    """Check the version that a caller expects a module to have; None: any. Raises InvalidArgumentError."""
    check_type("expected_version", version, int, NoneType)
    if isinstance(version, int) and not 0 <= version <= LAST_VERSION:
        raise InvalidArgumentError(f"expected_version is {version!r}, it must be a version: 0, 1, 2, …")


def check_version(version: object) -> None:
    """A version of a module; None: no particular one. Raises InvalidArgumentError."""
    check_type("version", version, int, NoneType)
    if isinstance(version, int) and not 0 < version <= LAST_VERSION:
        raise InvalidArgumentError(f"version is {version!r}, it must be a version: 1, 2, 3, …")


def is_time_limit(seconds: Any) -> bool:
    """Whether this is a number above 0; infinity is allowed. NaN is refused: only NaN is unequal to itself."""
    return isinstance(seconds, Real) and not seconds <= 0 and bool(seconds == seconds)


def module_problems(
    info: ModuleInfo, most_values: int = MAX_RECORD_VALUES, *, is_registered: bool = False
) -> Iterator[str]:
    """One line for each field that is wrong. Of a record with too many values, one line in all.

    A module that `is_registered` may have an old name.
    """
    field = _field_above(info, most_values)
    if field is not None:  # naming what is wrong with each of them would take too long
        yield f"{field}: more than {most_values} values in one record"
        return
    yield from stored_name_problems(info.name) if is_registered else name_problems(info.name)
    yield from _word_problems("category", info.category)
    yield from _capability_problems(info.capabilities)
    yield from _requirement_problems(info.requirements)
    yield from _word_problems("pool_type", info.pool_type)
    yield from _duration_problems(info.estimated_duration)
    if not isinstance(info.native_available, bool):
        yield f"native_available: {shown_value(info.native_available)} is not true or false"
    if not isinstance(info.examples, tuple):
        yield "examples: not a list of texts"
    else:
        for index, example in enumerate(info.examples):
            yield from _text_problems(f"examples[{index}]", example)
    yield from _map_problems("metadata", info.metadata)


def _is_plainly_sound(info: Any, most_values: int) -> bool:
    """Whether a quick look shows that the module is valid. False: it may be valid too, so look for problems.

    Takes a fraction of the time that the full look takes. That time decides how long a million modules take to load.
    """
    # `Any`: a struct's constructor checks no types, so a field may hold another type than it declares.
    capabilities, examples, needs = info.capabilities, info.examples, info.requirements
    return (
        _is_plain_word(info.name, MAX_NAME_BYTES)
        and not _has_wrong_parts(info.name)
        and _is_plain_word(info.category, MAX_TERM_BYTES)
        and _is_plain_word(info.pool_type, MAX_TERM_BYTES)
        and type(capabilities) is tuple
        and len(capabilities) <= MAX_CAPABILITIES
        and all(map(is_capability, capabilities))
        and _is_plain_need(needs)
        and type(info.estimated_duration) is int
        and 0 <= info.estimated_duration <= MAX_DURATION_MS
        and type(info.native_available) is bool
        and type(examples) is tuple
        and all(map(is_plain_text, examples))
        and len(examples) + plain_size(needs.extra, most_values) + plain_size(info.metadata, most_values) <= most_values
    )


def _field_above(info: Any, most: int) -> str | None:
    """The field with which a module holds more than `most` values, or None. Values can be in many places at once."""
    fields = (
        ("examples", info.examples),
        ("metadata", info.metadata),
        ("requirements", getattr(info.requirements, "extra", None)),
    )
    values = 0
    for field, held in fields:
        pending: list[Any] = [held]
        while pending:
            item = pending.pop()
            if type(item) in (dict, list, tuple):
                values += len(item)
                if values > most:
                    return field
                pending.extend(item.values() if type(item) is dict else item)
    return None


def _is_plain_need(needs: Any) -> bool:
    return (
        type(needs) is Requirements
        and type(needs.memory) is str
        and needs.memory in LEVELS
        and type(needs.compute) is str
        and needs.compute in LEVELS
        and type(needs.extra) is dict
        and not (needs.extra and not _OWN_FIELDS.isdisjoint(needs.extra))
        and (needs.gpu is True or needs.gpu is False)
    )


def _is_plain_word(text: object, limit: int) -> bool:
    return type(text) is str and 0 < len(text) <= limit and text.isascii() and text.isprintable()


def name_problems(name: object) -> tuple[str, ...]:
    """What is wrong with a new module's name or a new alias; empty when nothing is."""
    problems = stored_name_problems(name)
    if not problems and isinstance(name, str) and _has_wrong_parts(name):
        return (
            f"name: {shown_value(name)} must be parts joined by dots, none empty, without @ and white space around",
        )
    return problems


def stored_name_problems(name: object) -> tuple[str, ...]:
    """What is wrong with a name or an alias that may be stored already: release 0.1.0 took nearly any text."""
    return tuple(_label_problems("name", name, MAX_NAME_BYTES))


def _has_wrong_parts(name: str) -> bool:
    return name != name.strip() or "@" in name or name[0] == "." or name[-1] == "." or ".." in name


def _normalised(info: ModuleInfo) -> ModuleInfo:
    changes = {
        field: tuple(value)
        for field in ("capabilities", "examples")
        if isinstance(value := getattr(info, field), (list, tuple)) and type(value) is not tuple
    }
    return msgspec.structs.replace(info, **changes) if changes else info


def _subject(name: object) -> str:
    return name if isinstance(name, str) and not name_problems(name) else f"module {shown_value(name)}"


def _word_problems(field: str, word: object) -> Iterator[str]:
    yield from _label_problems(field, word, MAX_TERM_BYTES)


def _label_problems(field: str, text: object, limit: int) -> Iterator[str]:
    problems = tuple(_text_problems(field, text))
    if problems or type(text) is not str:
        yield from problems
    elif text.isascii() and text.isprintable() and 0 < len(text) <= limit:
        return
    elif not 1 <= len(text.encode()) <= limit:
        yield f"{field}: {len(text.encode())} bytes, allowed are 1 to {limit}"
    elif any(unicodedata.category(character) == "Cc" for character in text):
        yield f"{field}: {shown_value(text)} contains a control character"


def _text_problems(field: str, text: object) -> Iterator[str]:
    if type(text) is not str:  # a str of another class may not encode, or format as something else (enum)
        yield f"{field}: {shown_value(text)} is not a string"
    elif not text.isascii() and not is_utf8(text):
        yield f"{field}: {shown_value(text)} cannot be written as UTF-8"


def _capability_problems(capabilities: object) -> Iterator[str]:
    if not isinstance(capabilities, tuple):
        yield "capabilities: not a list of strings"
        return
    if len(capabilities) > MAX_CAPABILITIES:
        yield f"capabilities: {len(capabilities)}, at most {MAX_CAPABILITIES} are allowed"
    malformed = [word for word in capabilities if not is_capability(word)]
    if malformed:
        words = listed([shown_value(word) for word in malformed[:6]], 5)
        yield f"capabilities: {words} must match [a-z][a-z0-9_]* with at most {MAX_TERM_BYTES} bytes"


def _requirement_problems(needs: object) -> Iterator[str]:
    if type(needs) is not Requirements:
        yield f"requirements: {shown_value(needs)} is not a Requirements"
        return
    for field in ("memory", "compute"):
        level = getattr(needs, field)
        if type(level) is not str or level not in LEVELS:
            yield f"requirements.{field}: {shown_value(level)} is not one of {', '.join(LEVELS)}"
    if not isinstance(needs.gpu, bool):
        yield f"requirements.gpu: {shown_value(needs.gpu)} is not true or false"
    yield from _map_problems("requirements.extra", needs.extra)
    if isinstance(needs.extra, dict):
        for key in sorted(_OWN_FIELDS.intersection(needs.extra)):
            yield f"requirements.extra: {key} is a field of its own"


def _duration_problems(duration: object) -> Iterator[str]:
    if type(duration) is not int:
        yield f"estimated_duration: {shown_value(duration)} is not a whole number of milliseconds"
    elif not 0 <= duration <= MAX_DURATION_MS:
        yield f"estimated_duration: {shown_value(duration)} ms, allowed are 0 to {MAX_DURATION_MS} (30 days)"


def _map_problems(field: str, value: object) -> Iterator[str]:
    """Problems of a mapping of plain values. Without recursion: a deep value must not exhaust the stack."""
    if not isinstance(value, dict):
        yield f"{field}: {shown_value(value)} is not a mapping"
        return
    pending: list[tuple[str, Any, int]] = [(field, value, 1)]
    while pending:
        path, item, depth = pending.pop()
        if depth > MAX_METADATA_DEPTH:
            yield f"{field}: nested deeper than {MAX_METADATA_DEPTH} levels"
            return
        yield from _plain_problems(path, item)
        pending.extend((p, child, depth + 1) for p, child in _children(path, item))


def _children(path: str, item: object) -> Iterator[tuple[str, Any]]:
    if type(item) is dict:
        for key, child in item.items():
            if type(child) in (dict, list) or _plain_problem(child):
                yield f"{path}.{key}", child
    elif type(item) is list:
        for index, child in enumerate(item):
            if type(child) in (dict, list) or _plain_problem(child):
                yield f"{path}[{index}]", child


def _plain_problems(path: str, item: object) -> Iterator[str]:
    problem = _plain_problem(item)
    if problem:
        yield f"{path}: {problem}"
    elif type(item) is dict:
        for key in item:
            yield from _text_problems(f"{path}: key", key)


def _plain_problem(item: object) -> str:
    """What is wrong with one value; "": nothing. Only exact types: a subclass or a tuple would be read back unequal."""
    kind = type(item)
    if item is None or kind in (bool, dict, list):
        return ""
    if kind is float:  # JSON has no infinity or NaN: it would write null
        return "" if isfinite(item) else f"{item} is not a finite number"  # type: ignore[arg-type]
    if kind is str:
        return "" if is_utf8(item) else f"{shown_value(item)} cannot be written as UTF-8"  # type: ignore[arg-type]
    if kind is int:
        fits = SMALLEST_INT <= item <= LARGEST_INT  # type: ignore[operator]
        return "" if fits else f"{shown_value(item)} does not fit 64 bits"
    return f"a {kind.__name__} is not a plain value (use text, finite numbers, true/false, null, lists, mappings)"
