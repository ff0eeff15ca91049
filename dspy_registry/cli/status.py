"""`status`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from dspy_registry.cli import console, store_facts, tables
from dspy_registry.cli.numbers import Number
from dspy_registry.registry_store.errors import RegistryError

_PATIENCE: Final = 10.0  # seconds that the daemon may be silent
_LEAST_PATIENCE: Final = 1.0  # the same at the end of a wait
_PAUSE: Final = 0.2  # seconds between two looks
_STATE_FIELD: Final = 0  # of /proc/PID/stat, counted after the command, which may hold anything


@click.command("status", short_help="Show the state of the registry and its daemon.")
@click.option("--wait", type=Number(min=0), default=0.0, metavar="SECONDS", help="Wait so long until all is well.")
@console.path_option
@console.json_option
def status(wait: float, path: Path | None, as_json: bool) -> int:
    """Show what the registry holds, the state of its daemon, and what is wrong.

    Exits with 1 when something is: no daemon answers, or this user may not ask it; a commit hangs; acknowledged changes
    are missing; a manifest, the discovery, the last check or the last backup is in error; the folder lacks space for a
    commit.
    """
    from dspy_registry.registry_store.paths import registry_path

    facts = _facts_once_well(registry_path(path), time.monotonic() + wait)
    if as_json:
        console.print_json(facts)
    else:
        tables.print_fields(_rows(facts))
    return 1 if facts["problems"] else 0


def _facts_once_well(folder: Path, deadline: float) -> dict[str, Any]:
    """The facts as soon as nothing is wrong, or those of the deadline."""
    patience = _PATIENCE
    while True:
        left = deadline - time.monotonic()
        if left > 0:
            patience = min(_PATIENCE, max(_LEAST_PATIENCE, left))
        try:
            facts = current_facts(folder, patience)
            if not facts["problems"] or time.monotonic() >= deadline:
                return facts
        except RegistryError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE)


def current_facts(folder: Path, patience: float) -> dict[str, Any]:
    """What `--json` prints. The daemon may be silent for `patience` seconds.

    Raises RegistryNotFoundError, StoreError.
    """
    from dspy_registry.registry_store.disk import free_bytes

    stored = {**store_facts.stored_facts(folder), "free_bytes": free_bytes(folder)}
    facts = {"registry": stored, "daemon": None, "unreachable": None, **_daemon(folder, patience)}
    facts = store_facts.with_first_seen(facts)
    return {**facts, "problems": list(problems(facts))}


def _daemon(folder: Path, patience: float) -> dict[str, Any]:
    """The daemon's own status, or why it cannot be asked. It may be silent for `patience` seconds."""
    import msgspec

    from dspy_registry.writer.client.client import WriterClient
    from dspy_registry.writer.writer_lock import lock_holder

    pid = lock_holder(folder)
    if pid and _is_stopped(pid):  # it would be silent for as long as one waits
        remedy = f"Let it go on with `kill -CONT {pid}`, or end it."
        message = f"process {pid}, the writer, is stopped by a signal."
        return {"unreachable": {"type": "WriterTimeoutError", "message": message, "remedy": remedy}}
    try:
        with WriterClient(folder, timeout=patience) as client:
            return {"daemon": msgspec.structs.asdict(client.status())}
    except RegistryError as error:
        unreachable = {"type": type(error).__name__, "message": error.message, "remedy": error.remedy}
        return {"unreachable": unreachable}


def _is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process, as SIGSTOP does. False where that cannot be known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return stat.rpartition(b")")[2].split()[_STATE_FIELD] == b"T"
    except (OSError, IndexError):
        return False


# What is wrong


def problems(facts: dict[str, Any]) -> Iterator[str]:
    """A line for everything that an operator has to mend."""
    daemon = facts["daemon"]
    if daemon is None:
        yield f"daemon: {_why_not(facts['unreachable'])}"
    else:
        if daemon["hanging"]:
            yield "daemon: a commit takes so long that it may never end; look at the disk"
        for name, section in daemon["sections"].items():
            yield from _section_problems(name, section)
    if facts["registry"]["missing"]:
        yield f"registry: {facts['registry']['missing']}"
    yield from _space_problems(facts["registry"]["free_bytes"])


def _section_problems(name: str, section: Any) -> Iterator[str]:
    """Of any section: what it says under `error`, and how many `errors` it lists."""
    if not isinstance(section, dict):
        return
    if section.get("error"):
        yield f"{name}: {section['error']}"
    if errors := section.get("errors"):
        count = len(errors) if isinstance(errors, list) else errors
        told = f"{name}: {count} {'error' if count == 1 else 'errors'}"
        is_listed = isinstance(errors, list) and isinstance(errors[0], dict)
        yield f"{told}{'' if count == 1 else ', the first'}: {_item_text(errors[0])}" if is_listed else told


def _item_text(item: dict[str, Any]) -> str:
    """What a mapping holds, on one line. A file and a line are `file:line`, which editors and terminals open."""
    parts = {key: str(value) for key, value in item.items() if value not in (None, "")}
    if "file" in parts and int(parts.get("line", 0)):
        parts["file"] = f"{parts['file']}:{parts['line']}"
    return ": ".join(text for key, text in parts.items() if not (key == "line" and "file" in parts))


def _space_problems(free: int | None) -> Iterator[str]:
    from dspy_registry.registry_store.disk import COMMIT_BYTES

    if free is not None and free < COMMIT_BYTES:
        yield f"disk: {free:,} bytes are free, and a commit may need {COMMIT_BYTES:,}"


def _why_not(unreachable: dict[str, str]) -> str:
    if unreachable["type"] == "WriterUnavailableError":
        return "none answers"
    return f"cannot be asked: {unreachable['message']} {unreachable['remedy']}"


# For people


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for problem in facts["problems"]:
        yield "problem", tables.Marked(problem, "red")
    for key, value in facts["registry"].items():
        yield from store_facts.reader_rows(value) if key == "readers" else _field_rows(key, value)
    daemon = facts["daemon"]
    if daemon is None:
        unreachable = facts["unreachable"]
        is_none = unreachable["type"] == "WriterUnavailableError"
        yield "daemon", f"{_why_not(unreachable)}. {unreachable['remedy']}" if is_none else _why_not(unreachable)
        return
    sections = daemon.get("sections", {})
    values = {key: value for key, value in daemon.items() if key not in ("sections", "revision")}
    for section, held in {"daemon": {**values, "uptime": f"{daemon['uptime']:.0f} s"}, **sections}.items():
        keyed = (
            {f"{section}.{key}": value for key, value in held.items()} if isinstance(held, dict) else {section: held}
        )
        for key, value in keyed.items():
            yield from _field_rows(key, value)


def _field_rows(key: str, value: Any) -> Iterator[tuple[str, object]]:
    """Rows of one field. A list of mappings, such as manifest errors, gives its length, then a row each."""
    is_error = key.endswith((".error", ".errors"))
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        yield key, len(value)
        for item in value:
            text = _item_text(item)
            yield key, tables.Marked(text, "red") if is_error else text
    elif key.endswith(".every") and isinstance(value, (int, float)):
        yield key, console.duration(value)
    elif key.endswith("_at") and isinstance(value, int):
        yield key, console.local_time(value)
    else:
        yield key, tables.Marked(value, "red") if is_error and value else value
