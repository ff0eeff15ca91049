"""What `status` says of the registry's files and their readers. Where no slot is free it says what is known without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dspy_registry.cli.waiting import attach_complete
from dspy_registry.registry_store.wording import counted

if TYPE_CHECKING:
    from dspy_registry.registry_store.environment import Environment

_SHOWN: Final = 5


def stored_facts(folder: Path) -> dict[str, Any]:
    """What is known without a daemon. None: not known. Raises RegistryNotFoundError, StoreError."""
    from dspy_registry.registry_store.errors import NoReaderSlotError
    from dspy_registry.registry_store.sharing import detach
    from dspy_registry.writer.writer_lock import lock_holder

    try:
        environment = attach_complete(folder)
    except NoReaderSlotError:
        facts = _without_slot(folder)
    else:
        try:
            facts = _with_slot(environment)
        finally:
            detach(environment)
    return {"path": str(folder), **facts, "writer_pid": lock_holder(folder)}


def _with_slot(environment: Environment) -> dict[str, Any]:
    from dspy_registry.registry_store.revision import missing_commits, newest_word
    from dspy_registry.writer.catalog import Catalog

    word = newest_word(environment.folder)
    with environment.reading() as txn:
        state = Catalog(txn, environment.dbs).state
        modules = txn.stat(environment.dbs.modules)["entries"]
    slots, newest = environment.reader_slots()
    return {
        "revision": state.revision,
        "committed_at": state.committed_at,
        "modules": modules,
        "missing": missing_commits(environment.folder, word, state.revision),
        **_file_facts(environment.folder),
        "readers": _readers(slots, newest, apart_from_this=True),
    }


def _without_slot(folder: Path) -> dict[str, Any]:
    from dspy_registry.registry_store.reader_table import read_without_slot
    from dspy_registry.registry_store.revision import RevisionFile

    word = RevisionFile(folder).word[()]
    return {
        "revision": int(word) // 2 if 0 <= word < 2**53 else None,
        "committed_at": None,
        "modules": None,
        "missing": None,
        **_file_facts(folder),
        "readers": _readers(*read_without_slot(folder)),
    }


def _file_facts(folder: Path) -> dict[str, Any]:
    from dspy_registry.registry_store.data_file import unused_pages
    from dspy_registry.registry_store.layout import DATA_FILE

    unused, pages = unused_pages(folder) or (None, None)
    return {"data_bytes": (folder / DATA_FILE).stat().st_size, "pages": pages, "unused_pages": unused}


def _readers(slots: Any, newest: int, *, apart_from_this: bool = False) -> list[dict[str, Any]]:
    import os

    import msgspec

    from dspy_registry.registry_store.reader_table import holders

    found = holders(slots, newest)
    return [msgspec.structs.asdict(each) for each in found if not (apart_from_this and each.pid == os.getpid())]


def with_first_seen(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of `status`, the readers as the daemon knows them: it has seen since when they hold what they hold."""
    daemon = facts["daemon"]
    if daemon is not None:
        seen = daemon["sections"].pop("readers", None)
        if isinstance(seen, list):
            facts["registry"]["readers"] = seen
    return facts


def reader_rows(readers: list[dict[str, Any]]) -> Iterator[tuple[str, object]]:
    """How many read, and those that are behind, for people."""
    from dspy_registry.cli.console import local_time

    processes = counted(len(readers), "process", "processes")
    yield "readers", f"{processes}, {counted(sum(each['slots'] for each in readers), 'slot')}"
    for each in [each for each in readers if each["behind"]][:_SHOWN]:
        since = "" if each["since"] is None else f", seen since {local_time(int(each['since'] * 1000))}"
        command = each["command"] or "unknown"
        yield "snapshot", f"process {each['pid']} ({command}): {counted(each['behind'], 'transaction')} behind{since}"
