"""Where a text is beyond what a manifest may be. Pure, and linear in the text's length.

Parsers take more than linear time for some texts. What is refused here never reaches them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

MAX_DEPTH: Final = 64
"""The deepest nesting of mappings and lists in a manifest, and the most parts of a dotted key of TOML."""

MAX_DIGITS: Final = 1000
"""The most digits of a whole number. One that fits 64 bits has 20."""

# An unclosed string ends with its line, or with the text: no character is looked at twice.
_JSON: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"?|(?P<bracket>[\[\]{}])|(?P<bare>[^\s"\[\]{},:]+)|(?P<end>\n)')
_TOML: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"""|\Z)|\'\'\'.*?(?:\'\'\'|\Z)|"(?:[^"\\\n]|\\.)*"?|\'[^\'\n]*\'?|#[^\n]*'
    r"|(?P<bracket>[\[\]{}])|(?P<bare>[^\s\[\]{},=#\"'.]+)|(?P<dot>\.)|(?P<end>[,=\n])",
    re.DOTALL,
)
_NUMBER_THAT_IS_NONE: Final = re.compile(r"-?(NaN|Infinity)")
_LONG_NUMBER: Final = re.compile(rf"[-+]?[0-9_]{{{MAX_DIGITS + 1},}}")


def many_parts_line(text: str) -> int:
    """The line of a dotted key of TOML with more than MAX_DEPTH parts. 0: there is none."""
    if all(line.count(".") < MAX_DEPTH for line in text.split("\n")):
        return 0
    dots = 0
    for found in _TOML.finditer(text):
        kind = found.lastgroup
        if kind == "dot":
            dots += 1
            if dots >= MAX_DEPTH:
                return _line(text, found.start())
        elif kind in ("end", "bracket"):
            dots = 0
    return 0


def deep_line(text: str, suffix: str) -> int:
    """The line of the first bracket that is nested deeper than MAX_DEPTH. 0: there is none."""
    depth = 0
    for found in _tokens(text, suffix, "bracket"):
        depth += 1 if found.group() in "[{" else -1
        if depth > MAX_DEPTH:
            return _line(text, found.start())
    return 0


def no_number_line(text: str) -> int:
    """The line of the first NaN or Infinity of a JSON text. 0: there is none."""
    return _line_of_bare(text, ".json", _NUMBER_THAT_IS_NONE)


def long_number_line(text: str, suffix: str) -> int:
    """The line of the first whole number of a JSON or TOML text with more than MAX_DIGITS digits. 0: there is none."""
    return _line_of_bare(text, suffix, _LONG_NUMBER) if _LONG_NUMBER.search(text) else 0


def _line_of_bare(text: str, suffix: str, pattern: re.Pattern[str]) -> int:
    for found in _tokens(text, suffix, "bare"):
        if pattern.fullmatch(found.group()):
            return _line(text, found.start())
    return 0


def _tokens(text: str, suffix: str, kind: str) -> Iterator[re.Match[str]]:
    pattern = _TOML if suffix == ".toml" else _JSON
    return (found for found in pattern.finditer(text) if found.lastgroup == kind)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
