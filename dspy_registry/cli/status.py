"""`status`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dspy_registry.cli import console, store_facts, tables


@click.command("status", short_help="Show the state of the registry and its daemon.")
@console.path_option
@console.json_option
def status(path: Path | None, as_json: bool) -> int:
    """Show what the registry holds and the state of its daemon.

    Exits with 1 when no daemon answers, or this user may not ask it.
    """
    from dspy_registry.registry_store.paths import registry_path

    folder = registry_path(path)
    facts: dict[str, Any] = {"registry": store_facts.stored_facts(folder), "daemon": None, "unreachable": None}
    facts.update(_daemon(folder))
    facts = store_facts.with_first_seen(facts)
    if as_json:
        console.print_json(facts)
    else:
        tables.print_fields(_rows(facts))
    return 0 if facts["daemon"] else 1


def _daemon(folder: Path) -> dict[str, Any]:
    """The daemon's own status, or why it cannot be asked."""
    import msgspec

    from dspy_registry.registry_store.errors import RegistryError
    from dspy_registry.writer.client.client import WriterClient

    try:
        with WriterClient(folder) as client:
            return {"daemon": msgspec.structs.asdict(client.status())}
    except RegistryError as error:
        unreachable = {"type": type(error).__name__, "message": error.message, "remedy": error.remedy}
        return {"unreachable": unreachable}


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, object]]:
    stored = facts["registry"]
    for key, value in stored.items():
        yield from store_facts.reader_rows(value) if key == "readers" else _field_rows(key, value)
    daemon = facts["daemon"]
    if daemon is None:
        yield "daemon", _why_not(facts["unreachable"])
        return
    sections = daemon.get("sections", {})
    values = {key: value for key, value in daemon.items() if key not in ("sections", "revision")}
    for section, held in {"daemon": {**values, "uptime": f"{daemon['uptime']:.0f} s"}, **sections}.items():
        keyed = (
            {f"{section}.{key}": value for key, value in held.items()} if isinstance(held, dict) else {section: held}
        )
        for key, value in keyed.items():
            yield from _field_rows(key, value)


def _why_not(unreachable: dict[str, str]) -> str:
    if unreachable["type"] == "WriterUnavailableError":
        return "none answers"
    return f"cannot be asked: {unreachable['message']} {unreachable['remedy']}"


def _field_rows(key: str, value: Any) -> Iterator[tuple[str, object]]:
    """Rows of one field. A list of mappings, such as manifest errors, gives its length, then a row each."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        yield key, len(value)
        yield from ((key, ": ".join(str(part) for part in item.values() if part not in (None, ""))) for item in value)
    elif key.endswith("_at") and isinstance(value, int):
        yield key, console.local_time(value)
    else:
        yield key, value
