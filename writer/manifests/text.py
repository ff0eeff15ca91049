"""From a manifest's text to plain data, with the line of every key. Pure.

TOML, YAML and JSON give the same data. Lines are computed only when there is an error.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Final, TypeVar

from dspy_registry.writer.manifests.bounds import (
    MAX_DEPTH,
    MAX_DIGITS,
    deep_line,
    long_number_line,
    many_parts_line,
    no_number_line,
)
from dspy_registry.writer.manifests.lines import Lines, Path, Repeated, json_lines, shown_path, toml_lines
from dspy_registry.writer.manifests.yaml import YamlProblem, load_yaml, load_yaml_stream

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

SUFFIXES: Final = (".toml", ".yaml", ".yml", ".json")

_TOML_LINE: Final = re.compile(r" \(at line (\d+), column \d+\)$")


class TextProblem(ValueError):
    """The text cannot be read as data. `line` counts from 1, 0: not known. `further` are more problems of the text."""

    def __init__(self, message: str, line: int = 0, path: Path = (), further: tuple[TextProblem, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.path = path
        self.further = further


class Document:
    """A manifest's `data`, and `line_of` for each part of it."""

    def __init__(self, data: Any, find_lines: Callable[[], Lines]) -> None:
        self.data = data
        self._find_lines = find_lines

    @cached_property
    def _lines(self) -> Lines:
        return self._find_lines()

    @property
    def first_line(self) -> int:
        """The line of its first key. 0: it has no key."""
        return min(self._lines.values(), default=0)

    @property
    def deepest_line(self) -> int:
        """The first line of a part that lies too deep. 0: no part does."""
        return min((line for path, line in self._lines.items() if len(path) > MAX_DEPTH), default=0)

    def lines_of_declarations(self) -> list[tuple[Path, int]]:
        """The lines of what is declared, not of its fields: all that an error names when the data itself is right."""
        return [(path, line) for path, line in self._lines.items() if len(path) < 3 or path[2:] == ("name",)]

    def line_of(self, path: Path) -> int:
        """The line of this part, or of the nearest part around it with a known line. Counts from 1, 0: not known."""
        return next((self._lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._lines), 0)


def read_text(text: str, suffix: str) -> Document:
    """The document in the format that the suffix names. Raises TextProblem."""
    return _checked(lambda: [_READERS[suffix](text)], lambda document: _deep_line(text, suffix, document))[0]


def read_stream(text: str, suffix: str) -> list[Document]:
    """The documents of a text that may hold several: YAML, and JSON with one document a line (`.jsonl`).

    Raises TextProblem.
    """
    if suffix in (".yaml", ".yml"):
        return _checked(lambda: _read_yaml_stream(text), lambda document: 0)
    if suffix == ".jsonl":
        return _checked(lambda: _read_json_lines(text), lambda document: document.first_line if document else 0)
    return [read_text(text, suffix)]


def _checked(read: Callable[[], list[Document]], line_of: Callable[[Document | None], int]) -> list[Document]:
    """The documents. `line_of` tells where one is too deep; None: the one that could not be read."""
    try:
        documents = read()
    except RecursionError:
        raise TextProblem(_TOO_DEEP, line_of(None)) from None
    for document in documents:
        if _is_deep(document.data):
            raise TextProblem(_TOO_DEEP, line_of(document))
    return documents


def _deep_line(text: str, suffix: str, document: Document | None) -> int:
    line = deep_line(text, suffix)
    return line or (document.deepest_line if document else 0)


_TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"


def _is_deep(data: Any) -> bool:
    pending = [(data, 1)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, dict | list):
            if depth > MAX_DEPTH:
                return True
            children = item.values() if isinstance(item, dict) else item
            pending.extend((child, depth + 1) for child in children)
    return False


def _read_toml(text: str) -> Document:
    many_parts = many_parts_line(text)
    if many_parts:
        raise TextProblem(f"not TOML: a key has more than {MAX_DEPTH} parts", many_parts)
    _refuse_long_numbers(text, ".toml", "TOML")
    try:
        data = tomllib.loads(text)
    except ValueError as error:
        found = _TOML_LINE.search(str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise TextProblem(f"not TOML: {_TOML_LINE.sub('', str(error))}", line) from error
    return Document(data, lambda: toml_lines(text, lambda key: str(tomllib.loads(f"key = {key}")["key"])))


def _read_yaml(text: str) -> Document:
    data, lines = _yaml(lambda: load_yaml(text, MAX_DEPTH))
    return Document({} if data is None else data, lambda: lines)  # nothing but comments


def _read_yaml_stream(text: str) -> list[Document]:
    found = _yaml(lambda: list(load_yaml_stream(text, MAX_DEPTH)))
    return [Document(data, lambda lines=lines: lines) for data, lines in found if data is not None]  # type: ignore[misc]


def _refuse_long_numbers(text: str, suffix: str, language: str, lines_before: int = 0) -> None:
    line = long_number_line(text, suffix)
    if line:
        raise TextProblem(f"not {language}: a number has more than {MAX_DIGITS} digits", lines_before + line)


def _yaml(load: Callable[[], T]) -> T:
    try:
        return load()
    except YamlProblem as error:
        raise _joined([TextProblem(f"not YAML: {message}", line) for message, line in error.found]) from error


def _read_json_lines(text: str) -> list[Document]:
    documents, problems = [], []
    for number, line in enumerate(text.split("\n")):
        if line.strip():
            try:
                documents.append(_read_json(line, number))
            except TextProblem as problem:
                problems += [problem, *problem.further]
    if problems:
        raise _joined(problems)
    return documents


def _joined(problems: list[TextProblem]) -> TextProblem:
    first = problems[0]
    return TextProblem(first.message, first.line, first.path, tuple(problems[1:]))


def _read_json(text: str, lines_before: int = 0) -> Document:
    _refuse_long_numbers(text, ".json", "JSON", lines_before)
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            repeated.append("")
        return found

    try:
        data = json.loads(text, object_pairs_hook=unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise TextProblem(f"not JSON: {error.msg}", lines_before + error.lineno) from error
    except ValueError as error:
        raise TextProblem(f"not JSON: {error}", lines_before + no_number_line(text)) from error
    if repeated:
        raise _joined([_repeated(lines_before, *found) for found in _outermost(json_lines(text)[1])])
    return Document(data, lambda: {path: lines_before + line for path, line in json_lines(text)[0].items()})


def _outermost(repeated: list[Repeated]) -> Iterator[Repeated]:
    """Without the keys inside a mapping that appears twice itself."""
    paths = {path for path, _, _ in repeated}
    return (one for one in repeated if not any(one[0][:end] in paths for end in range(1, len(one[0]))))


def _repeated(lines_before: int, path: Path, first: int, again: int) -> TextProblem:
    message = f"not JSON: {shown_path(path)} appears twice, first in line {lines_before + first}"
    return TextProblem(message, lines_before + again, path)


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a number")


_READERS: Final[dict[str, Callable[[str], Document]]] = {
    ".toml": _read_toml,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".json": _read_json,
}
