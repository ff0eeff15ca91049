"""From a manifest's text to plain data, with the line of every key. Pure.

TOML, YAML and JSON give the same data. Lines are looked for only when something is wrong.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

from writer.manifests.lines import Lines, Path, json_lines, shown_path, toml_lines
from writer.manifests.yaml import YamlProblem, load_yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_DEPTH: Final = 64
"""Nesting of mappings and lists in a manifest."""

SUFFIXES: Final = (".toml", ".yaml", ".yml", ".json")

_TOML_LINE: Final = re.compile(r" \(at line (\d+), column \d+\)$")


class TextProblem(ValueError):
    """The text cannot be read as data. `line` counts from 1; 0: it cannot be known."""

    def __init__(self, message: str, line: int = 0, path: Path = ()) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.path = path


class Document:
    """What a manifest's text says: `data`, and `line_of` each part of it."""

    def __init__(self, data: Any, find_lines: Callable[[], Lines]) -> None:
        self.data = data
        self._find_lines = find_lines

    @cached_property
    def _lines(self) -> Lines:
        return self._find_lines()

    def line_of(self, path: Path) -> int:
        """The line of this part, or of the nearest thing around it that has one; counted from 1, 0: there is none."""
        return next((self._lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._lines), 0)


def read_text(text: str, suffix: str) -> Document:
    """The document in the format that the suffix names. Raises TextProblem."""
    try:
        document = _READERS[suffix](text)
    except RecursionError:
        raise TextProblem(_TOO_DEEP) from None
    if _is_deep(document.data):
        raise TextProblem(_TOO_DEEP)
    return document


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
    try:
        data = tomllib.loads(text)
    except ValueError as error:
        found = _TOML_LINE.search(str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise TextProblem(f"not TOML: {_TOML_LINE.sub('', str(error))}", line) from error
    return Document(data, lambda: toml_lines(text, lambda key: str(tomllib.loads(f"key = {key}")["key"])))


def _read_yaml(text: str) -> Document:
    try:
        data, lines = load_yaml(text, MAX_DEPTH)
    except YamlProblem as error:
        raise TextProblem(f"not YAML: {error}", error.line) from error
    return Document({} if data is None else data, lambda: lines)  # nothing but comments


def _read_json(text: str) -> Document:
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            repeated.append("")
        return found

    try:
        data = json.loads(text, object_pairs_hook=unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise TextProblem(f"not JSON: {error.msg}", error.lineno) from error
    except ValueError as error:
        raise TextProblem(f"not JSON: {error}") from error
    if repeated:
        path, first, again = json_lines(text)[1][0]
        raise TextProblem(f"not JSON: {shown_path(path)} appears twice, first in line {first}", again, path)
    return Document(data, lambda: json_lines(text)[0])


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a number")


_READERS: Final[dict[str, Callable[[str], Document]]] = {
    ".toml": _read_toml,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".json": _read_json,
}
