"""The line of each key of a JSON or TOML text. Pure.

The text has been parsed before, so it is well-formed and its depth is bounded. This only walks it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

Path = tuple[str | int, ...]
"""Keys and indexes from the top of a document: ("modules", 0, "name")."""

Lines = dict[Path, int]
Repeated = tuple[Path, int, int]

_JSON: Final = re.compile(r'(?P<text>"(?:[^"\\]|\\.)*")|(?P<mark>[{}\[\],:])|(?P<bare>[^\s{}\[\],:"]+)|(?P<end>\n)')
_TOML: Final = re.compile(
    r'(?P<text>"""(?:[^\\]|\\.)*?"""(?:"{0,2})|\'\'\'.*?\'\'\'(?:\'{0,2})|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\')'
    r"|(?P<comment>#[^\n]*)|(?P<mark>[{}\[\],=])|(?P<bare>[^\s{}\[\],=#\"']+)|(?P<end>\n)",
    re.DOTALL,
)


def shown_path(path: Path) -> str:
    """`modules[0].requirements.memory`, safe to print for any keys."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".").encode("utf-8", "backslashreplace").decode()


def json_lines(text: str) -> tuple[Lines, list[Repeated]]:
    """The line of each key, and the keys that appear twice in one object, with both lines."""
    walk = _Walk(_tokens(text, _JSON, ("end",)))
    walk.value((), ":", lambda tokens: (str(json.loads(tokens[0].text)),))
    return walk.lines, walk.repeated


def toml_lines(text: str, unquote: Callable[[str], str]) -> Lines:
    """The line of each key and table. `unquote` decodes a quoted key."""
    walk = _Walk(_tokens(text, _TOML, ("comment",)))
    tables: dict[Path, int] = {}
    table: Path = ()
    while walk.more():
        if walk.here().kind == "end":
            walk.take()
        elif walk.here().text == "[":
            table = _table(walk, tables, unquote)
        else:
            key = _dotted(walk.until("="), unquote)
            line = walk.take().line
            for end in range(1, len(key)):
                walk.lines.setdefault((*table, *key[:end]), line)
            walk.value((*table, *key), "=", lambda tokens: _dotted(tokens, unquote))
            walk.until_end()
    return walk.lines


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def _tokens(text: str, pattern: re.Pattern[str], skipped: tuple[str, ...]) -> Iterator[_Token]:
    line, counted = 1, 0
    for found in pattern.finditer(text):
        line += text.count("\n", counted, found.start())
        counted = found.start()
        kind = found.lastgroup or ""
        if kind not in skipped:
            yield _Token(kind, found.group(), line)


class _Walk:
    """A position in the tokens, and the lines found so far."""

    def __init__(self, tokens: Iterator[_Token]) -> None:
        self._tokens = list(tokens)
        self._at = 0
        self.lines: Lines = {}
        self.repeated: list[Repeated] = []

    def more(self) -> bool:
        return self._at < len(self._tokens)

    def here(self) -> _Token:
        return self._tokens[self._at]

    def take(self) -> _Token:
        self._at += 1
        return self._tokens[self._at - 1]

    def until(self, *marks: str) -> list[_Token]:
        """The tokens before the next of these marks, without ends of lines."""
        found = []
        while self.more() and not (self.here().kind == "mark" and self.here().text in marks):
            token = self.take()
            if token.kind != "end":
                found.append(token)
        return found

    def until_end(self) -> None:
        while self.more() and self.here().kind != "end":
            self.take()

    def note(self, path: Path, line: int) -> None:
        if path in self.lines:
            self.repeated.append((path, self.lines[path], line))
        self.lines.setdefault(path, line)

    def value(self, path: Path, assign: str, key: Callable[[list[_Token]], Path]) -> None:
        """Walk one value. `assign` is the mark between a key and its value, `key` reads a key."""
        opening = self.take()
        if path and path not in self.lines:
            self.lines[path] = opening.line
        if opening.kind != "mark":
            return
        index = 0
        while True:
            before = self.until("{", "[", "]", "}", ",", assign)
            mark = self.here()
            if mark.text == assign:
                child = (*path, *key(before))
                self.note(child, before[0].line)
                self.take()
                self._skip_ends()
                self.value(child, assign, key)
            elif mark.text in "{[":
                self.value((*path, index), assign, key)
            else:
                if before and opening.text == "[":
                    child = (*path, index)
                    self.lines[child] = before[0].line
                self.take()
                index += 1
                if mark.text != ",":
                    return

    def _skip_ends(self) -> None:
        while self.here().kind == "end":
            self.take()


def _table(walk: _Walk, tables: dict[Path, int], unquote: Callable[[str], str]) -> Path:
    """The path of a `[table]` or `[[list of tables]]`, counting the elements of lists."""
    line = walk.take().line
    is_list = walk.here().text == "["
    if is_list:
        walk.take()
    keys = _dotted(walk.until("]"), unquote)
    walk.until_end()
    path: Path = ()
    for position, key in enumerate(keys):
        path = (*path, key)
        if is_list and position == len(keys) - 1:
            tables[path] = tables.get(path, -1) + 1
        if path in tables:
            path = (*path, tables[path])
        walk.lines.setdefault(path, line)
    walk.lines[path] = line
    return path


def _dotted(tokens: list[_Token], unquote: Callable[[str], str]) -> Path:
    parts: list[str] = []
    for token in tokens:
        if token.kind == "text":
            parts.append(unquote(token.text))
        else:
            parts.extend(part for part in token.text.split(".") if part)
    return tuple(parts)
