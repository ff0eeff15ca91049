"""The daemon's log: a line for each change that was committed, and bounds for what clients can make it write."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from dspy_registry.registry_store.changes import AliasChange, Change, LabelChange, ModuleChange, shown_requester
from dspy_registry.registry_store.labels import shown_versions
from dspy_registry.registry_store.records import By

LINES_OF_A_CHANGE: Final = 20
"""Of a larger commit the first of its changes have a line, and one more line counts the others."""

_log = logging.getLogger("dspy_registry")


class LineBudget:
    """At most `lines` lines of one kind in `seconds`. The first line after a gap tells how many were left out."""

    def __init__(self, lines: int, seconds: float) -> None:
        self._lines, self._seconds = lines, seconds
        self._began = -seconds
        self._written = self._left_out = 0

    def info(self, message: str, *arguments: object, now: float | None = None) -> None:
        """Log a line at info, if there is room. `now` is monotonic, in seconds; None: the clock's time."""
        at = time.monotonic() if now is None else now
        if at - self._began >= self._seconds:
            self._began, self._written = at, 0
        if self._written >= self._lines:
            self._left_out += 1
            return
        self._written += 1
        left_out, self._left_out = self._left_out, 0
        more = f" ({left_out} more lines of this kind were left out before)" if left_out else ""
        _log.info(f"{message}%s", *arguments, more)


def log_change(change: Change) -> None:
    """A line at info for each change of a commit, with its parts as fields for JSON."""
    if not _log.isEnabledFor(logging.INFO):
        return
    for number, facts in enumerate(_facts(change)):
        if number == LINES_OF_A_CHANGE:
            count = sum(map(len, (change.modules, change.aliases, change.labels, change.policies, change.overrides)))
            _write({"action": "changed", "revision": change.revision, "further_changes": count - number})
            return
        _write(facts)


def _facts(change: Change) -> Iterator[dict[str, Any]]:
    sole = change.by[0] if len(change.by) == 1 else None  # policies and overrides do not say who of several it was
    if not (change.modules or change.aliases or change.labels or change.policies or change.overrides):
        action = "everything changed" if change.everything else "implied capabilities changed"
        yield _fact(change, action, "", sole)
    for module in change.modules:
        yield _module(change, module)
    for alias in change.aliases:
        yield _alias(change, alias)
    for label in change.labels:
        yield _label(change, label)
    for pattern in change.policies:
        yield {**_fact(change, "policy changed", "", sole), "policy": pattern}
    for name in change.overrides:
        yield {**_fact(change, "override changed", "", sole), "name": name}


def _module(change: Change, module: ModuleChange) -> dict[str, Any]:
    fact = _fact(change, module.action, module.source, module.by)
    return {**fact, "name": module.name, "version": module.version}


def _alias(change: Change, alias: AliasChange) -> dict[str, Any]:
    fact = _fact(change, "alias set" if alias.new else "alias removed", alias.source, alias.by)
    return {**fact, "alias": alias.alias, "old": alias.old, "new": alias.new}


def _label(change: Change, label: LabelChange) -> dict[str, Any]:
    fact = _fact(change, "label set" if label.new else "label removed", label.source, label.by)
    old, new = (shown_versions(dict(versions)) if versions else None for versions in (label.old, label.new))
    return {**fact, "name": label.name, "label": label.label, "old": old, "new": new}


def _fact(change: Change, action: str, source: str, by: Any) -> dict[str, Any]:
    return {"action": action, "revision": change.revision, "source": source, "by": by}


def _write(facts: dict[str, Any]) -> None:
    shown = " ".join(f"{name}={_on_one_line(name, value)}" for name, value in facts.items() if value not in (None, ""))
    _log.info("change: %s", shown, extra={"facts": facts})


def _on_one_line(name: str, value: Any) -> str:
    """A value on one line: whatever is no plain word is quoted."""
    if name == "by":
        return _requester(value)
    text = str(value)
    return text if text.isprintable() and " " not in text and '"' not in text else json.dumps(text)


@lru_cache(maxsize=64)
def _requester(by: By) -> str:
    return json.dumps(shown_requester(by))


class JsonFormatter(logging.Formatter):
    """Each record as one JSON object on one line: `time`, `level`, `message`, and for a change its parts."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({**line, **getattr(record, "facts", {})})
