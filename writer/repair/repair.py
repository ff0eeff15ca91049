"""Repairing: what can still be read of a damaged registry is written into a new one. The old one is left as it is.

The new registry looks like a backup: `restore` puts it in the place of the damaged one.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Final

from dspy_registry.registry_store import backup, layout, opening
from dspy_registry.registry_store.changes import State, state_codec
from dspy_registry.registry_store.check.checker import check_apart
from dspy_registry.registry_store.disk import explained, write_refusals
from dspy_registry.registry_store.errors import (
    FormatVersionError,
    InvalidArgumentError,
    RegistryNotFoundError,
    StoreError,
)
from dspy_registry.registry_store.protocol import Progress
from dspy_registry.registry_store.revision import missing_commits, newest_word
from dspy_registry.registry_store.sharing import attach, detach
from dspy_registry.registry_store.wording import listed
from dspy_registry.writer.manifests.folder import ManifestFolder
from dspy_registry.writer.manifests.stage import stage_tree
from dspy_registry.writer.registry_writer import RegistryWriter
from dspy_registry.writer.repair.account import Account, Lost, Repaired, Taken
from dspy_registry.writer.repair.reading import Found, Rows, read
from dspy_registry.writer.repair.rebuilding import counted, rebuilt
from dspy_registry.writer.writer_lock import lock_holder

_NO_ROOM: Final = "Nothing is left of the new registry. Free disk space, or name another folder."
_OTHER: Final = "Name a folder that this user may write to."
_SHOWN: Final = 3


def repair(
    folder: Path,
    into: Path,
    *,
    backups: Path | None = None,
    manifests: Path | None = None,
    progress: Progress | None = None,
) -> Repaired:
    """Write what can be read of the registry in `folder` into a new one in `into`, a new or empty folder.

    What is damaged is taken from the state before, from history, from `backups` (a backup, or a folder of them: the
    newest that can be read), from what manifests, core and discovery declared, and from the folder `manifests`. None:
    there are none. Nothing in `folder` is written. `progress(done, total)` counts steps. Raises RegistryNotFoundError,
    InvalidArgumentError, FormatVersionError, and StoreError: a writer is at work, nothing can be read, or the disk
    refuses.
    """
    _refuse_places(folder, into)
    found = read(folder, progress)
    _refuse_format(found)
    account = Account()
    rows = rebuilt(found, _newest(backups) if backups is not None else Found(), account)
    if not rows[layout.MODULES]:
        raise StoreError(
            f"no module can be read in {folder}, and nothing was written.",
            remedy="Restore a backup, or name one with --backup.",
        )
    _tell_of_lost_commits(folder, found, account)
    with write_refusals(into, not_permitted=_OTHER, no_room=_NO_ROOM), backup.partial_folder(into) as partial:
        _write(partial, rows)
        state, modules = backup.complete(partial)
        declared = _load_manifests(partial, manifests) if manifests is not None else ()
        if declared:
            state, modules = backup.complete(partial)
        _refuse_unsound(partial)
        backup.put_in_place(partial, into)
    return _told(into, state, modules, found, rows, account, frozenset(declared))


def _refuse_places(folder: Path, into: Path) -> None:
    if not folder.is_dir():
        raise RegistryNotFoundError(f"{folder} is not a folder.", remedy="Name the folder of the damaged registry.")
    if into.resolve() == folder.resolve() or folder.resolve() in into.resolve().parents:
        raise InvalidArgumentError(f"{into} is in {folder} itself.", remedy="Name a new folder elsewhere.")
    with explained(folder):
        holder = lock_holder(folder)
    if holder is not None:
        raise StoreError(
            f"{folder} has a writer: {f'process {holder}' if holder else 'another process'}.",
            remedy="Stop it first: what is read must not change meanwhile.",
        )


def _refuse_format(found: Found) -> None:
    stored = found.rows[layout.META].get(layout.META_FORMAT)
    if stored is not None and int(stored) > layout.FORMAT_VERSION:
        raise FormatVersionError(int(stored), layout.FORMAT_VERSION)


def _newest(place: Path) -> Found:
    """A backup, or the newest one in a folder of backups, by the revision and the time in its head."""
    if (place / layout.DATA_FILE).exists():
        return read(place)
    with explained(place):
        folders = [path for path in place.iterdir() if (path / layout.DATA_FILE).exists()]
    for path in sorted(folders, key=lambda path: (path / layout.DATA_FILE).stat().st_mtime_ns, reverse=True):
        found = read(path)
        if found.rows[layout.MODULES]:
            return found
    raise RegistryNotFoundError(f"there is no backup in {place}.", remedy="Name a backup, or a folder of backups.")


def _tell_of_lost_commits(folder: Path, found: Found, account: Account) -> None:
    """The word is evidence of commits that data.mdb does not hold."""
    head = found.rows[layout.META].get(layout.META_STATE)
    revision = _state_of(head, found.format).revision if head is not None else 0
    missing = missing_commits(folder, newest_word(folder), revision)
    if missing is not None:
        account.lose(layout.CHANGES, "", missing)


def _state_of(head: bytes, format: int) -> State:
    state: State = state_codec.load(head, layout.META_STATE, format)
    return state


def _write(partial: Path, rows: dict[bytes, Rows]) -> None:
    opening.create(partial)
    environment = attach(partial, writable=True)
    try:
        with environment.writing() as txn:
            for database, held in rows.items():
                cursor = txn.cursor(getattr(environment.dbs, database.decode()))
                cursor.putmulti(sorted(held.items()), append=True)
    finally:
        detach(environment)


def _load_manifests(partial: Path, manifests: Path) -> tuple[str, ...]:
    """Bring the new registry in line with manifests, as the daemon will. Returns the modules that they declare."""
    with closing(ManifestFolder(manifests)) as folder, RegistryWriter(partial) as writer:
        tree = folder.read().tree
        declared: list[str] = []
        writer.store.committer.commit(lambda draft: declared.extend(stage_tree(draft, tree).modules))
    return tuple(declared)


def _refuse_unsound(partial: Path) -> None:
    """What is written must be content with the check, whatever was read."""
    violations = [str(violation) for violation in check_apart(partial)]
    if violations:
        raise StoreError(
            f"what could be read makes no sound registry: {listed(violations, _SHOWN, '; ')}.",
            remedy="Nothing was written. Restore a backup, and report this.",
        )


def _told(
    into: Path,
    state: State,
    modules: int,
    found: Found,
    rows: dict[bytes, Rows],
    account: Account,
    declared: frozenset[str],
) -> Repaired:
    from_files = {f"modules/{name}" for name in declared}
    taken = [*account.taken, *(Taken(lost.where, "manifests") for lost in account.lost if lost.where in from_files)]
    lost: list[Lost] = [each for each in account.lost if each.where not in from_files]
    damage = tuple(f"{name.decode()}: {text}" for name, texts in found.broken.items() for text in texts)
    return Repaired(
        str(into), state.revision, modules, dict(counted(rows)), damage, tuple(sorted(taken, key=str)), tuple(lost)
    )
