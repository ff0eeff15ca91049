"""Modules from a file: JSON (one, a list, or one per line), YAML or TOML; also what `list` and `discover` print.

The rules are those of manifests, so that a module means the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final, NamedTuple

from dspy_registry.registry_store.errors import InvalidModuleError
from dspy_registry.registry_store.records import ModuleInfo, from_plain
from dspy_registry.registry_store.wording import first_of
from dspy_registry.writer.manifests.lines import Path, shown_path
from dspy_registry.writer.manifests.text import Document, TextProblem, read_stream
from dspy_registry.writer.manifests.validate import module_entry_problems

_IGNORED: Final = ("provenance", "explained", "changed", "changes", "implied_capabilities", "overrides", "labels")
"""What `get --json` and `history --json` add to a module. The registry sets these itself."""

_BESIDE: Final = ("$schema", "revision", "failures", "python", "dspy_version", "registered")
"""Keys beside `modules`, in a manifest or in the output of `list --json` and `discover --json`."""

_SECTIONS: Final = ("aliases", "implications", "defaults")
_OF_MANIFESTS: Final = (
    "register takes modules only; put the file into a folder and let `dspy-registry serve --manifests FOLDER` load it"
)
_PROBLEMS_SHOWN: Final = 20


class _Place(NamedTuple):
    """A position: the document, and the path in it."""

    document: Document
    path: Path = ()

    @property
    def line(self) -> int:
        return self.document.line_of(self.path) or self.document.first_line


class _Found(NamedTuple):
    place: _Place
    entry: Any


def read_modules(source: str, text: bytes) -> list[ModuleInfo]:
    """The modules of a file's content. `source` is its name; the suffix gives the format, JSON by default.

    Raises InvalidModuleError, naming every wrong field of every module with its line.
    """
    try:
        documents = _parse(PurePath(source).suffix.lower(), text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise InvalidModuleError(source, (f"it cannot be read: line {line}: not UTF-8",)) from error
    except TextProblem as problem:
        messages = [_message(one.line, "", one.message) for one in (problem, *problem.further)]
        messages[0] = f"it cannot be read: {messages[0]}"
        raise InvalidModuleError(source, first_of(messages, _PROBLEMS_SHOWN)) from problem
    found = [each for document in documents for each in _modules_of(document)]
    problems = [problem for document in documents for problem in _beside_problems(document)]
    problems += [problem for each in found for problem in _problems(each)]
    problems += _named_twice(found)
    if problems or not found:
        raise InvalidModuleError(source, first_of(problems, _PROBLEMS_SHOWN) or ("it holds no module",))
    return [module_from(each.entry) for each in found]


def module_from(fields: dict[str, Any]) -> ModuleInfo:
    """The module of plain fields that have no problem."""
    return from_plain({field: value for field, value in fields.items() if field not in _IGNORED})


def _parse(suffix: str, text: str) -> list[Document]:
    if suffix in (".yaml", ".yml", ".toml"):
        return read_stream(text, suffix)
    if suffix in (".jsonl", ".ndjson"):
        return read_stream(text, ".jsonl")
    first, _, rest = text.partition("\n")
    return read_stream(text, ".jsonl" if rest.strip() and _is_json(first) else ".json")


def _is_json(line: str) -> bool:
    try:
        read_stream(line, ".json")
    except TextProblem:
        return False
    return True


# What a document holds


def _modules_of(document: Document) -> list[_Found]:
    data: Any = document.data
    path: Path = ()
    if _is_listing(data):
        data, path = data.get("modules", []), ("modules",)
    if isinstance(data, list):
        return [_Found(_Place(document, (*path, index)), entry) for index, entry in enumerate(data)]
    return [_Found(_Place(document, path), data)]


def _is_listing(data: Any) -> bool:
    """Whether modules are listed under `modules`, as in a manifest; else the mapping is one module."""
    return isinstance(data, dict) and (
        "modules" in data or ("name" not in data and any(map(data.__contains__, _SECTIONS)))
    )


def _beside_problems(document: Document) -> Iterator[str]:
    """Problems with keys beside the modules: their content would be lost."""
    if not _is_listing(document.data):
        return
    for key in document.data:
        if key in _SECTIONS:
            yield _message(document.line_of((key,)) or document.line_of((key, 0)), key, _OF_MANIFESTS)
        elif key != "modules" and key not in _BESIDE:
            yield _message(document.line_of((str(key),)), str(key), "unknown key; the modules belong under modules")


def _problems(found: _Found) -> Iterator[str]:
    document, path = found.place
    entry = found.entry
    if isinstance(entry, Mapping):
        entry = {field: value for field, value in entry.items() if field not in _IGNORED}
    of = f" of {entry['name']}" if isinstance(entry, dict) and isinstance(entry.get("name"), str) else ""
    for problem in module_entry_problems(path, entry):
        line = document.line_of(problem.path) or found.place.line
        yield _message(line, f"{shown_path(problem.path)}{of}".lstrip(), problem.message)


def _named_twice(found: list[_Found]) -> Iterator[str]:
    first: dict[str, _Place] = {}
    for place, entry in found:
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and first.setdefault(name, place) is not place:
            yield f"{name!r} is there twice, {_position(first[name])} and {_position(place)}"


def _position(place: _Place) -> str:
    where = f"as {shown_path(place.path)} " if place.path else ""
    return f"{where}in line {place.line}"


def _message(line: int, field: str, message: str) -> str:
    return ": ".join(part for part in (f"line {line}" if line else "", field, message) if part)
