"""Modules from a file: JSON (one, a list, or one per line), YAML or TOML; also what `list` and `discover` print."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, Final

import msgspec

from registry_store.errors import InvalidModuleError
from registry_store.records import ModuleInfo, from_plain

_FIELDS: Final = ModuleInfo.__struct_fields__
_IGNORED: Final = ("provenance", "explained", "changed")
"""What `get --json` and `history --json` add to a module: the registry keeps it itself."""


def read_modules(source: str, text: bytes) -> list[ModuleInfo]:
    """The modules of a file's content; `source` is its name, whose suffix tells the format, JSON if none does.

    Not validated beyond what it takes to build them. Raises InvalidModuleError, naming every one that cannot be.
    """
    try:
        document = _parse(PurePath(source).suffix.lower(), text)
    except ValueError as error:
        raise InvalidModuleError(source, (f"it cannot be read: {error}",)) from error
    found = _modules_of(document)
    problems = [f"module {number}: {problem}" for number, item in enumerate(found, 1) for problem in _problems(item)]
    if problems or not found:
        raise InvalidModuleError(source, problems[:20] or ("it holds no module",))
    return [module_from(item) for item in found]


def module_from(fields: dict[str, Any]) -> ModuleInfo:
    """The module of plain fields that were found to have no problem."""
    return from_plain({field: value for field, value in fields.items() if field not in _IGNORED})


def _parse(suffix: str, text: bytes) -> Any:
    if suffix in (".yaml", ".yml"):
        return _parse_yaml(text)
    if suffix == ".toml":
        return msgspec.toml.decode(text)
    lines = text.split(b"\n", 1)
    if suffix in (".jsonl", ".ndjson") or (len(lines) == 2 and lines[1].strip() and _is_json(lines[0])):
        return msgspec.json.Decoder().decode_lines(text)
    return msgspec.json.decode(text)


def _parse_yaml(text: bytes) -> Any:
    import yaml

    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return documents[0] if len(documents) == 1 else documents


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return False
    return True


def _modules_of(document: Any) -> list[Any]:
    if isinstance(document, dict) and isinstance(document.get("modules"), list):
        listed: list[Any] = document["modules"]
        return listed
    return document if isinstance(document, list) else [document]


def _problems(item: Any) -> list[str]:
    if not isinstance(item, dict):
        return ["it is not a mapping of fields"]
    known = (*_FIELDS, *_IGNORED)
    unknown = [f"no field is named {field!r}" for field in item if field not in known]
    return unknown if "name" in item else [*unknown, "it has no name"]
