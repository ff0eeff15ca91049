"""What every fault is judged by: what a registry holds, and whether a writer can go on from there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lmdb

from dspy_registry import (
    ModuleInfo,
    Registry,
    RegistryError,
    RegistryNotFoundError,
    RegistryWriter,
    Snapshot,
    UnknownModuleError,
)
from dspy_registry.registry_store.check.checker import check
from dspy_registry.registry_store.codec import encode

Contents = dict[str, Any]
AFTERWARDS = "stress.Afterwards"
"""What the oracle itself registers, to see that a writer can go on."""


def contents(folder: Path, aliases: Iterable[str] = ()) -> Contents:
    """What a reader of one snapshot finds. Raises RegistryError.

    No times and no revisions: a commit that was cut off may be made again by the next writer (the seeding is).
    """
    with Registry(folder, cache_size=0) as registry, registry.snapshot() as snapshot:
        found: Contents = {}
        for name in snapshot:
            stored = snapshot.describe(name)
            digest = hashlib.sha256(encode(stored.info)).hexdigest()[:16]
            found[name] = [digest, stored.provenance.version, stored.provenance.source]
        for alias in aliases:
            if info := _meant(snapshot, alias):
                found[f"alias {alias}"] = info.name
        for usage in snapshot.usages():
            found[f"usage {usage.name}"] = usage.calls
        return found


def _meant(snapshot: Snapshot, alias: str) -> ModuleInfo | None:
    try:
        return snapshot.get_module(alias)
    except UnknownModuleError:
        return None


def without_afterwards(found: Contents) -> Contents:
    return {key: value for key, value in found.items() if key != AFTERWARDS}


def complaint(error: BaseException) -> str:
    """What is wrong with an error ("": nothing): it must be one of ours, and say what to do."""
    if not isinstance(error, RegistryError):
        return f"an error that is not ours: {type(error).__name__}: {error}"
    if not error.message.strip():
        return f"{type(error).__name__} says nothing"
    if not error.remedy.strip():
        return f"{type(error).__name__} names no remedy: {error}"
    return ""


def attempt(what: str, work: Callable[[], Any], problems: list[str]) -> Any:
    """What `work` returns; None where it raised. An error that is not ours, or names no remedy, is a problem."""
    try:
        return work()
    except (RegistryError, lmdb.Error, OSError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        if wrong := complaint(error):
            problems.append(f"{what}: {wrong}")
        return None


def check_finds(folder: Path) -> list[str]:
    """What `check` says of a folder, refusals included: never nothing where it could not look."""
    try:
        return [str(violation) for violation in check(folder)]
    except RegistryError as error:
        return [f"{type(error).__name__}: {error}"]


def recovers(
    folder: Path,
    allowed: list[Contents],
    least_revision: int,
    aliases: Iterable[str] = (),
    *,
    readable: list[Contents] | None = None,
) -> list[str]:
    """What is wrong with a registry after its fault: a reader looks, a writer goes on, the check looks it over.

    `allowed` is what it may hold: what was acknowledged, or that and the commit that was under way. `readable` is what
    a reader may see before a writer has opened it, None: the same.
    """
    problems: list[str] = []
    before = attempt("a reader before any writer", lambda: contents(folder, aliases), problems)
    readable = allowed if readable is None else readable
    if before is not None and before not in readable:
        problems.append(f"a reader before any writer sees what was never committed: {differs(before, readable)}")
    attempt("the check before any writer", lambda: list(check(folder)), problems)
    return problems + writer_goes_on(folder, allowed, least_revision, aliases)


def writer_goes_on(folder: Path, allowed: list[Contents], least_revision: int, aliases: Iterable[str]) -> list[str]:
    problems: list[str] = []
    try:
        with RegistryWriter(folder) as writer:
            if writer.revision < least_revision:
                problems.append(f"revision {writer.revision}, though {least_revision} was acknowledged")
            after = contents(folder, aliases)
            writer.register_module(ModuleInfo(AFTERWARDS))
    except Exception as error:
        return [*problems, f"the writer cannot go on: {type(error).__name__}: {error}"]
    if after not in allowed:
        problems.append(f"the writer finds other than what was committed: {differs(after, allowed)}")
    found = without_afterwards(contents(folder, aliases))
    if found != after:
        problems.append(f"the next commit changed more than it should: {differs(found, [after])}")
    return problems + [f"check: {violation}" for violation in check_finds(folder)]


def differs(found: Contents, allowed: list[Contents]) -> str:
    """The shortest difference from what is allowed."""
    texts = []
    for each in allowed:
        keys = [key for key in {**each, **found} if each.get(key) != found.get(key)]
        texts.append(", ".join(f"{key}: {found.get(key)} for {each.get(key)}" for key in keys[:4]) + f" ({len(keys)})")
    return min(texts, key=len, default="nothing is allowed")


def is_absent(folder: Path) -> bool:
    """Whether there is no registry, and that is said."""
    try:
        Registry(folder).close()
    except RegistryNotFoundError:
        return True
    except RegistryError:
        return False
    return False
