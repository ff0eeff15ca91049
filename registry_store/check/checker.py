"""Checks the whole registry in one snapshot: every invariant that stored bytes can violate.

    python -m dspy_registry.registry_store.check PATH

prints one JSON object a line and exits with 0 (no violation), 1 (violations) or 2 (cannot be read). LMDB keeps no
checksums. Reading a truncated file ends in SIGBUS, and reading a scrambled file sometimes in SIGABRT. So for a file
that may be damaged, `check_apart` runs the check in a separate process.

Memory is bounded: the check holds the postings of one block at a time.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

import lmdb
import msgspec

from dspy_registry.registry_store.check.cluster import global_labels
from dspy_registry.registry_store.check.inspection import (
    CIRCUITS,
    DAMAGE,
    HEAD,
    LIMITS,
    REVISION_WORD,
    VALUES,
    Head,
    Violation,
    load_head,
)
from dspy_registry.registry_store.check.lost_versions import lost_versions
from dspy_registry.registry_store.check.modules import postings_and_modules
from dspy_registry.registry_store.check.programs import programs
from dspy_registry.registry_store.check.rows import aliases, changes, history, labels, layers, meta_rows, sealed_rows
from dspy_registry.registry_store.data_file import refuse_freed_root
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import (
    CorruptRecordError,
    DamagedStoreError,
    FormatVersionError,
    RegistryError,
    StoreError,
)
from dspy_registry.registry_store.health_file import HEALTH_FILE, health_file_problems
from dspy_registry.registry_store.lease_file import LEASES_FILE, lease_file_problems
from dspy_registry.registry_store.paths import registry_path
from dspy_registry.registry_store.protocol import Progress
from dspy_registry.registry_store.revision import RevisionFile, committed, missing_commits, newest_word, under_way
from dspy_registry.registry_store.sharing import attach, detach, share

__all__ = ["check", "check_apart"]

Section: TypeAlias = tuple[str, Callable[[Head], Iterator[Violation]]]
_SECTIONS: Final[tuple[Section, ...]] = (
    ("modules", postings_and_modules),
    ("aliases", aliases),
    ("layers", layers),
    ("history", history),
    ("history and changes", lost_versions),
    ("changes", changes),
    ("labels", labels),
    ("requests, usage, policies", sealed_rows),
    ("programs", programs),
    ("labels of the cluster", global_labels),
    ("meta", meta_rows),
)


def check(target: str | os.PathLike[str] | Environment, progress: Progress | None = None) -> Iterator[Violation]:
    """Every violated invariant of a registry, given as its folder or as an open environment.

    All is read in one transaction, and the writer may go on meanwhile. An error of LMDB ends a transaction, so the rest
    is then read in another one. Run the iterator to its end or close it.
    `progress(done, total)` counts modules. Raises RegistryNotFoundError, StorePermissionError, FormatVersionError.
    """
    try:
        environment = share(target) if isinstance(target, Environment) else _attached(registry_path(target))
    except DamagedStoreError as error:
        yield Violation(DAMAGE, error.file, str(error))
        return
    try:
        yield from _check(environment, progress)
    finally:
        detach(environment)


def check_apart(path: str | os.PathLike[str]) -> Iterator[Violation]:
    """`check` in a separate process. If reading a damaged file kills that process, this is one more violation.

    Raises StoreError with the other process's message if that could not read the registry at all.
    """
    import subprocess

    process = subprocess.run(check_command(registry_path(path)), capture_output=True, check=False)
    yield from violations_in(process.returncode, process.stdout, process.stderr)


def check_command(folder: Path) -> list[str]:
    """The command that checks a registry in a process of its own."""
    return [sys.executable, "-m", "dspy_registry.registry_store.check", os.fspath(folder)]


def violations_in(status: int, output: bytes, errors: bytes) -> Iterator[Violation]:
    """What `check_command` found, by its exit status and what it wrote. Raises StoreError where it could not look."""
    decode = msgspec.json.Decoder(Violation).decode
    if status in (0, 1):
        yield from map(decode, output.splitlines())
    elif status < 0:
        whole_lines = output.rpartition(b"\n")[0]
        yield from map(decode, whole_lines.splitlines())
        name = signal.Signals(-status).name
        yield Violation(VALUES, "data.mdb", f"reading it ends in {name}: it was cut short or overwritten")
    else:
        raise StoreError(errors.decode("utf-8", "replace").strip() or "the check could not be run.")


def _check(environment: Environment, progress: Progress | None) -> Iterator[Violation]:
    before = newest_word(environment.folder)
    left = list(_SECTIONS)
    while left:
        is_first = len(left) == len(_SECTIONS)
        with environment.long_read() as txn:
            try:
                head = load_head(txn, environment.dbs, progress)
            except FormatVersionError:
                raise
            except (RegistryError, lmdb.Error) as error:
                yield Violation(HEAD, "meta", f"{error} Nothing {'else' if is_first else 'more'} was looked at.")
                return
            if is_first:
                yield from _revision_file(environment.folder, head, before)
                yield from _host_files(environment.folder)
            yield from _sections(head, left)


def _sections(head: Head, left: list[Section]) -> Iterator[Violation]:
    """Takes sections from the list and looks at them, up to one where LMDB fails: that ends the transaction."""
    while left:
        name, section = left.pop(0)
        try:
            yield from section(head)
        except CorruptRecordError as error:
            yield _unread(name, error)
        except lmdb.Error as error:
            yield _unread(name, error)
            return


def _unread(section: str, error: Exception) -> Violation:
    return Violation(VALUES, section, f"cannot be read to its end ({error})")


def _attached(folder: Path) -> Environment:
    environment = attach(folder)
    try:
        refuse_freed_root(folder)
    except BaseException:
        detach(environment)
        raise
    return environment


def _host_files(folder: Path) -> Iterator[Violation]:
    """The files of health and limits. A missing one is no problem: it is made when it is needed."""
    yield from (Violation(CIRCUITS, HEALTH_FILE, problem) for problem in health_file_problems(folder))
    yield from (Violation(LIMITS, LEASES_FILE, problem) for problem in lease_file_problems(folder))


def _revision_file(folder: Path, head: Head, before: float) -> Iterator[Violation]:
    """The word is read before and after the transaction began, since a writer may be at work."""
    try:
        file = RevisionFile(folder)
    except StoreError as error:
        yield Violation(REVISION_WORD, "revision", str(error))
        return
    if file.registry_id != head.registry_id:
        yield Violation(REVISION_WORD, "revision", "belongs to another registry than data.mdb")
        return
    revision, after = head.state.revision, file.word[()]
    if after < committed(revision):
        yield Violation(REVISION_WORD, "revision", f"its word {after} is older than revision {revision} of data.mdb")
    missing = missing_commits(folder, before, revision)
    if missing is not None:
        yield Violation(REVISION_WORD, "revision", missing)
    elif before > under_way(revision + 1):
        yield Violation(REVISION_WORD, "revision", f"its word {before} is ahead of revision {revision} of data.mdb")


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit status."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m dspy_registry.registry_store.check PATH\n")
        return 2
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a damaged file may kill this process: no core dump then
    found = 0
    try:
        for violation in check(arguments[0]):
            found = 1
            sys.stdout.buffer.write(msgspec.json.encode(violation) + b"\n")
            sys.stdout.buffer.flush()
    except RegistryError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return found
