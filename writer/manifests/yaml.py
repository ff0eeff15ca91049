"""YAML for manifests: plain data, by the core schema of YAML 1.2. Pure.

PyYAML's construction is not used: it reads `no` as false and 1:30 as 90, keeps the last of two equal keys, and lets
aliases multiply without bound. Nothing here creates an object of a class that a file names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import yaml

from dspy_registry.writer.manifests.lines import Lines, Path

MAX_NODES: Final = 250_000
"""Values in one document. A value that aliases repeat counts each time."""

_MAX_EVENTS: Final = 3 * MAX_NODES + 100
"""Of the parser. A value and its key have at most three, and the stream and its documents have some."""

_TAG: Final = "tag:yaml.org,2002:"
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlProblem(ValueError):
    """`found` are the problems, each with its line. Lines count from 1, 0: not known."""

    def __init__(self, *found: tuple[str, int]) -> None:
        super().__init__("; ".join(message for message, _ in found))
        self.found = found


class _Loader(_Base):  # type: ignore[misc]  # its class depends on how PyYAML was built
    """Resolves plain scalars by the core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML adds to it


for _kind, _pattern, _first in (
    ("null", r"^(~|null|Null|NULL|)$", [*"~nN", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", [*"tTfF"]),
    ("int", r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", [*"-+0123456789"]),
    (
        "float",
        r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        [*"-+.0123456789"],
    ),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(_pattern), _first)


def load_yaml(text: str, max_depth: int) -> tuple[Any, Lines]:
    """The data of one document, and the line of each part. Raises YamlProblem."""
    with _loading(text, max_depth) as loader:
        return _Construction(max_depth).document(loader.get_single_node())


def load_yaml_stream(text: str, max_depth: int) -> Iterator[tuple[Any, Lines]]:
    """The data and lines of each document of a stream. Raises YamlProblem."""
    with _loading(text, max_depth) as loader:
        while loader.check_node():
            yield _Construction(max_depth).document(loader.get_node())


@contextmanager
def _loading(text: str, max_depth: int) -> Iterator[Any]:
    loader = None
    try:
        _refuse_depth(text, max_depth)
        loader = _Loader(text)
        yield loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise YamlProblem((what, _line(mark) if mark else 0)) from error
    except yaml.YAMLError as error:
        raise YamlProblem((" ".join(str(error).split()), _unprintable_line(text))) from error
    finally:
        if loader is not None:
            loader.dispose()


def _refuse_depth(text: str, max_depth: int) -> None:
    """Called before composing, which recurses, and takes memory for each value."""
    depth = 0
    try:
        for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
            if count > _MAX_EVENTS:
                raise YamlProblem((f"more than {MAX_NODES} values", _line(event.start_mark)))
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > max_depth:
                raise _too_deep(max_depth, event.start_mark)
    except yaml.MarkedYAMLError as error:
        # LibYAML reads ahead and has a limit for brackets, which it may reach before `max_depth` is reached.
        mark = error.problem_mark
        if mark is not None and _open_brackets(text[: mark.index]) > max_depth:
            raise _too_deep(max_depth, mark) from error
        raise


def _too_deep(max_depth: int, mark: Any) -> YamlProblem:
    return YamlProblem((f"nested deeper than {max_depth} levels", _line(mark)))


def _open_brackets(text: str) -> int:
    return sum(map(text.count, "[{")) - sum(map(text.count, "]}"))


class _Construction:
    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self._left = MAX_NODES
        self._lines: Lines = {}
        self._repeated: dict[tuple[str, int], None] = {}  # a dict: a problem that a merge finds again counts once

    def document(self, node: yaml.Node | None) -> tuple[Any, Lines]:
        data = None if node is None else self._value(node, (), 1)
        if self._repeated:
            raise YamlProblem(*self._repeated)
        return data, self._lines

    def _value(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise _problem(f"more than {MAX_NODES} values, aliases resolved", node)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if depth > self._max_depth:  # an alias inside the value that it names
            raise _too_deep(self._max_depth, node.start_mark)
        kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != f"{_TAG}{kind}":
            raise _problem(f"the tag {node.tag} is not supported", node)
        return self._mapping(node, path, depth) if kind == "map" else self._list(node, path, depth)

    def _list(self, node: yaml.Node, path: Path, depth: int) -> list[Any]:
        found = []
        for index, item in enumerate(node.value):
            at = (*path, index)
            self._lines[at] = item.start_mark.line + 1
            found.append(self._value(item, at, depth + 1))
        return found

    def _mapping(self, node: yaml.Node, path: Path, depth: int) -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                self._merge(merged, value_node, path, depth)
        own: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not _is_merge(key_node):
                key = _key(key_node)
                at = (*path, str(key))
                if key in own:
                    told = f"{key!r} appears twice, first in line {self._lines[at]}"
                    self._repeated[told, _line(key_node.start_mark)] = None
                    continue
                self._lines[at] = _line(key_node.start_mark)
                own[key] = self._value(value_node, at, depth + 1)
        return {**merged, **own}

    def _merge(self, merged: dict[Any, Any], node: yaml.Node, path: Path, depth: int) -> None:
        """Add the mapping that `<<` names, or a list of mappings. Earlier ones win. In place: there may be many."""
        for one in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(one, yaml.MappingNode):
                raise _problem("<< merges mappings only", node)
            for key, value in self._value(one, path, depth + 1).items():
                merged.setdefault(key, value)


def _is_merge(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.value == "<<" and not node.style


def _key(node: yaml.Node) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        raise _problem("a key must be a text", node)
    return _scalar(node)


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, value = node.tag.removeprefix(_TAG), node.value
    try:
        if kind == "str":
            return value
        if kind == "null":
            return None
        if kind == "bool":
            return {"true": True, "false": False}[value.lower()]
        if kind == "int":
            return int(value, 0 if value[:2] in ("0o", "0x") else 10)
        if kind == "float":
            return float(re.sub(r"\.(inf|nan)", r"\1", value.lower()))
    except (ValueError, KeyError) as error:
        raise _problem(f"{value[:60]!r} is not a valid {kind}", node) from error
    raise _problem(f"the tag {node.tag} is not supported", node)


def _problem(message: str, node: yaml.Node) -> YamlProblem:
    return YamlProblem((message, _line(node.start_mark)))


def _unprintable_line(text: str) -> int:
    """The line of the first character that YAML does not allow. 0: there is none."""
    found = yaml.reader.Reader.NON_PRINTABLE.search(text)
    return text.count("\n", 0, found.start()) + 1 if found else 0


def _line(mark: Any) -> int:
    return int(mark.line) + 1
