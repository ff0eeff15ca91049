"""From the data of one manifest to what it declares, or to all its errors. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec

from dspy_registry.registry_store.layers import Default
from dspy_registry.registry_store.layout import MAX_IMPLIED_WORDS, MAX_IMPLYING_WORDS, MAX_TERM_BYTES
from dspy_registry.registry_store.policy import Policy, policy_problems
from dspy_registry.registry_store.records import from_plain
from dspy_registry.registry_store.validation import module_problems, name_problems
from dspy_registry.registry_store.vocabulary import is_capability
from dspy_registry.registry_store.wording import shown_value
from dspy_registry.writer.manifests.declarations import ERRORS_SOUGHT, Declarations, LoadedFile, ManifestError, shown
from dspy_registry.writer.manifests.lines import Path, shown_path
from dspy_registry.writer.manifests.schema import (
    DefaultManifest,
    LabelManifest,
    Manifest,
    ModuleManifest,
    PolicyManifest,
    keys_of,
)
from dspy_registry.writer.manifests.text import Document
from dspy_registry.writer.manifests.validate_labels import declared_labels, label_entry_problems, with_text_keys

_LONGEST_COMPARED: Final = 64  # characters

_PART: Final = re.compile(r"\[([0-9]{1,9})\]|([^.\[\]]+)")
"""A place in a list, or a key, which may consist of digits too."""


class Problem(NamedTuple):
    """One error of a document. `first` is the place of an earlier equal declaration; None: there is none."""

    path: Path
    message: str
    first: Path | None = None


def validate_document(file: str, document: Document) -> LoadedFile:
    """What the document declares, or all its errors."""
    problems = list(islice(_problems(document.data), ERRORS_SOUGHT))
    if not problems:
        try:
            labels = with_text_keys(document.data.get("labels", ()))
            msgspec.convert({**document.data, "labels": labels}, Manifest)
        except msgspec.ValidationError as error:
            problems.append(Problem((), str(error)))
    if problems:
        return LoadedFile(file, None, shown(_errors(file, document, problems)))
    entries = document.data.get("modules", ())
    places: dict[str, Path] = {entry["name"]: ("modules", index) for index, entry in enumerate(entries)}
    return LoadedFile(file, _declarations(document.data), (), places, document.line_of)


def _declarations(data: Mapping[str, Any]) -> Declarations:
    return Declarations(
        modules={entry["name"]: _without(entry, "name") for entry in data.get("modules", ())},
        aliases=dict(data.get("aliases", {})),
        implications={word: tuple(implied) for word, implied in data.get("implications", {}).items() if implied},
        defaults=tuple(Default(entry["match"], _without(entry, "match")) for entry in data.get("defaults", ())),
        labels=declared_labels(data.get("labels", ())),
        policies={entry["pattern"]: Policy(**_without(entry, "pattern")) for entry in data.get("policies", ())},
    )


def _without(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {field: value for field, value in entry.items() if field != key}


def _errors(file: str, document: Document, problems: list[Problem]) -> Iterator[ManifestError]:
    for problem in problems:
        message = problem.message
        if problem.first is not None:
            message += f", first in line {document.line_of(problem.first)}"
        line = document.line_of(problem.path) or document.first_line or 1
        yield ManifestError(file, line, shown_path(problem.path), message)


def _problems(data: Any) -> Iterator[Problem]:
    if not isinstance(data, dict):
        yield _wrong_type((), f"a mapping with {_listed(keys_of(Manifest))}", data)
        return
    yield from _unknown_keys((), data, keys_of(Manifest))
    if not isinstance(data.get("$schema", ""), str):
        yield _wrong_type(("$schema",), "a text", data["$schema"])
    yield from _module_problems(data.get("modules", []))
    yield from _alias_problems(data.get("aliases", {}))
    yield from _implication_problems(data.get("implications", {}))
    yield from _default_problems(data.get("defaults", []))
    yield from _label_problems(data.get("labels", []))
    yield from _policy_problems(data.get("policies", []))


def _module_problems(entries: Any) -> Iterator[Problem]:
    if not isinstance(entries, list):
        yield _wrong_type(("modules",), "a list of modules", entries)
        return
    seen: dict[str, Path] = {}
    for index, entry in enumerate(entries):
        path: Path = ("modules", index)
        yield from module_entry_problems(path, entry)
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and seen.setdefault(name, path) != path:
            yield Problem((*path, "name"), f"{name!r} is declared twice in this file", (*seen[name], "name"))


def module_entry_problems(path: Path, entry: Any) -> Iterator[Problem]:
    """The errors of the module at this path."""
    yield from _entry_problems(path, entry, ModuleManifest, "name")


def _default_problems(entries: Any) -> Iterator[Problem]:
    if not isinstance(entries, list):
        yield _wrong_type(("defaults",), "a list of defaults", entries)
        return
    for index, entry in enumerate(entries):
        yield from _entry_problems(("defaults", index), entry, DefaultManifest, "match")


def _label_problems(entries: Any) -> Iterator[Problem]:
    if not isinstance(entries, list):
        yield _wrong_type(("labels",), "a list of labels", entries)
        return
    seen: dict[tuple[str, str], Path] = {}
    for index, entry in enumerate(entries):
        path: Path = ("labels", index)
        if not isinstance(entry, dict):
            yield _wrong_type(path, f"a mapping with {_listed(keys_of(LabelManifest))}", entry)
            continue
        yield from _unknown_keys(path, entry, keys_of(LabelManifest))
        yield from (Problem(place, message) for place, message in label_entry_problems(path, entry))
        declared = str(entry.get("module")), str(entry.get("label"))
        if seen.setdefault(declared, path) != path:
            yield Problem((*path, "label"), f"{'@'.join(declared)} is declared twice in this file", seen[declared])


def _policy_problems(entries: Any) -> Iterator[Problem]:
    if not isinstance(entries, list):
        yield _wrong_type(("policies",), "a list of policies", entries)
        return
    seen: dict[str, Path] = {}
    for index, entry in enumerate(entries):
        path: Path = ("policies", index)
        yield from _policy_entry_problems(path, entry)
        pattern = entry.get("pattern") if isinstance(entry, dict) else None
        if isinstance(pattern, str) and seen.setdefault(pattern, path) != path:
            yield Problem(
                (*path, "pattern"), f"{pattern!r} is declared twice in this file", (*seen[pattern], "pattern")
            )


def _policy_entry_problems(path: Path, entry: Any) -> Iterator[Problem]:
    keys = keys_of(PolicyManifest)
    if not isinstance(entry, dict):
        yield _wrong_type(path, f"a mapping with {_listed(keys)}", entry)
        return
    yield from _unknown_keys(path, entry, keys)
    if "pattern" not in entry:
        yield Problem(path, "pattern is missing")
    fields = {field: value for field, value in entry.items() if field in keys and field != "pattern"}
    for problem in policy_problems(entry.get("pattern", "any"), Policy(**fields)):
        field, separator, message = problem.partition(": ")
        yield Problem((*path, field) if separator else path, message or problem)


def _alias_problems(aliases: Any) -> Iterator[Problem]:
    if not isinstance(aliases, dict):
        yield _wrong_type(("aliases",), "a mapping of alias to module", aliases)
        return
    for alias, name in aliases.items():
        for problem in (*name_problems(alias), *name_problems(name)):
            yield Problem(("aliases", str(alias)), problem.removeprefix("name: "))


def _implication_problems(implications: Any) -> Iterator[Problem]:
    if not isinstance(implications, dict):
        yield _wrong_type(("implications",), "a mapping of capability to capabilities", implications)
        return
    if len(implications) > MAX_IMPLYING_WORDS:
        yield Problem(("implications",), f"{len(implications)} capabilities, at most {MAX_IMPLYING_WORDS} are allowed")
    for word, implied in implications.items():
        path: Path = ("implications", str(word))
        yield from _capability_problems(path, word)
        if not isinstance(implied, list):
            yield _wrong_type(path, "a list of capabilities", implied)
            continue
        if len(implied) > MAX_IMPLIED_WORDS:
            yield Problem(path, f"{len(implied)} capabilities, at most {MAX_IMPLIED_WORDS} are allowed")
        for index, each in enumerate(implied):
            yield from _capability_problems((*path, index), each)


def _capability_problems(path: Path, word: Any) -> Iterator[Problem]:
    if not is_capability(word):
        yield Problem(path, f"{shown_value(word)} must match [a-z][a-z0-9_]* with at most {MAX_TERM_BYTES} bytes")


def _entry_problems(path: Path, entry: Any, struct: type[msgspec.Struct], key: str) -> Iterator[Problem]:
    """The errors of one module or default. `key` is the key that it must have."""
    if not isinstance(entry, dict):
        yield _wrong_type(path, f"a mapping with {_listed(keys_of(struct))}", entry)
        return
    yield from _unknown_keys(path, entry, keys_of(struct))
    if key not in entry:
        yield Problem(path, f"{key} is missing")
    else:
        for problem in name_problems(entry[key]):
            yield Problem((*path, key), problem.removeprefix("name: "))
    known = {field: value for field, value in entry.items() if field in keys_of(struct) and field != key}
    if not isinstance(known.get("requirements", {}), dict):
        yield _wrong_type((*path, "requirements"), "a mapping", known.pop("requirements"))
    for problem in module_problems(from_plain({**known, "name": "any"})):
        field, _, message = problem.partition(": ")
        yield Problem((*path, *_field_path(field)), message)


def _field_path(field: str) -> Path:
    """The path in a manifest of a field such as `requirements.extra.devices[2]`: manifests have no level `extra`."""
    parts = tuple(int(place) if place else key for place, key in _PART.findall(field))
    return (parts[0], *parts[2:]) if parts[:2] == ("requirements", "extra") else parts


def _unknown_keys(path: Path, mapping: Mapping[Any, Any], known: tuple[str, ...]) -> Iterator[Problem]:
    for key in mapping:
        if key not in known:
            close = difflib.get_close_matches(str(key)[:_LONGEST_COMPARED], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {_listed(known)}"
            yield Problem((*path, str(key)), f"unknown key; {hint}")


def _wrong_type(path: Path, expected: str, value: Any) -> Problem:
    return Problem(path, f"expected {expected}, not {shown_value(value)}")


def _listed(words: Iterable[str]) -> str:
    return ", ".join(word for word in words if not word.startswith("$"))
