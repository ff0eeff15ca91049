"""A whole tree of manifests held together: which files come into force, and what is wrong between them. Pure.

A file with an error of any kind is *held*: what it declared last, which the registry knows, stays in force, and
counts against the other files as if it were written there.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from dspy_registry.registry_store.changes import Implications
from dspy_registry.registry_store.vocabulary import find_cycle
from dspy_registry.writer.manifests.declarations import Declarations, LoadedFile, ManifestError, shown
from dspy_registry.writer.manifests.lines import Path

NOTHING = Declarations()


class Tree(msgspec.Struct, frozen=True):
    """All files of a folder as they were read together.

    `unknown` are those that cannot be looked for now: they, and everything in folders of these names, are held.
    `errors` are about the folder itself.
    """

    files: dict[str, LoadedFile]
    unknown: tuple[str, ...] = ()
    errors: tuple[ManifestError, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """What is to come into force, by file; the files that are held; and why."""

    effective: dict[str, Declarations]
    held: frozenset[str]
    errors: tuple[ManifestError, ...]


def compile_tree(
    tree: Tree,
    in_force: Mapping[str, Declarations],
    others: Sequence[Implications] = (),
    refused: Mapping[str, tuple[ManifestError, ...]] | None = None,
) -> Plan:
    """Decide about each file.

    `in_force` is what is in force by file, `others` the implications declared elsewhere (core, clients), `refused` what
    the registry itself objected to. A file that is in `in_force` and neither effective nor held has gone.
    """
    refused = refused or {}
    errors = [*tree.errors, *(error for found in refused.values() for error in found)]
    errors += [error for loaded in tree.files.values() for error in loaded.errors]
    held = {file for file in in_force if is_unknown(file, tree.unknown)} | set(refused)
    held |= {file for file, loaded in tree.files.items() if loaded.declared is None}
    while True:
        claims = _claims(tree, in_force, held)
        found = [*_conflicts(tree, claims, held), *_cycles(tree, claims, held, others)]
        if not found:
            break
        errors += found
        held |= {error.file for error in found}
    effective = {file: declared for file, declared in claims.items() if file not in held}
    return Plan(effective, frozenset(held), shown(errors))


def is_unknown(file: str, unknown: Iterable[str]) -> bool:
    """Whether a file is one of these, or in one of these folders; "" is the whole tree."""
    return any(not place or file == place or file.startswith(f"{place}/") for place in unknown)


def _claims(tree: Tree, in_force: Mapping[str, Declarations], held: set[str]) -> dict[str, Declarations]:
    """What each file declares, of held ones what they declared last; sorted by file."""
    claims = {file: in_force.get(file, NOTHING) for file in held}
    for file, loaded in tree.files.items():
        if file not in held and loaded.declared is not None:
            claims[file] = loaded.declared
    return dict(sorted(claims.items()))


def _conflicts(tree: Tree, claims: Mapping[str, Declarations], held: set[str]) -> Iterator[ManifestError]:
    """What several files declare, and aliases that are names: an error of each file that is not held already."""
    modules: dict[str, list[str]] = defaultdict(list)
    aliases: dict[str, list[str]] = defaultdict(list)
    for file, declared in claims.items():
        for name in declared.modules:
            modules[name].append(file)
        for alias in declared.aliases:
            aliases[alias].append(file)
    for name, files in modules.items():
        for file, others in _others(files, held):
            path = (*tree.files[file].places[name], "name")
            yield _conflict(tree, held, file, path, f"{name!r}", others)
    for alias, files in aliases.items():
        for file, others in _others(files, held):
            yield _conflict(tree, held, file, ("aliases", alias), f"the alias {alias!r}", others)
    yield from _shadowed(tree, modules, aliases, held)


def _others(files: list[str], held: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Each of several files that declare one thing, with the others."""
    for file in files if len(files) > 1 else ():
        if file not in held:
            yield file, [other for other in files if other != file]


def _shadowed(
    tree: Tree, modules: Mapping[str, list[str]], aliases: Mapping[str, list[str]], held: set[str]
) -> Iterator[ManifestError]:
    for alias in sorted(aliases.keys() & modules.keys()):
        told = f"{alias!r} is the full name of a module, declared by {', '.join(modules[alias])}"
        for file in aliases[alias]:
            if file not in held:
                yield tree.files[file].error(("aliases", alias), f"{told}; full names always win")


def _conflict(tree: Tree, held: set[str], file: str, path: Path, what: str, others: list[str]) -> ManifestError:
    said = [
        f"{other} (which is in error: what it declared last counts)" if other in held else other for other in others
    ]
    return tree.files[file].error(path, f"{what} is declared by {file} and by {', '.join(said)}")


def _cycles(
    tree: Tree, claims: Mapping[str, Declarations], held: set[str], others: Iterable[Implications]
) -> Iterator[ManifestError]:
    """The first cycle of implications: an error of each file that has part in it and is not held already."""
    together: dict[str, list[str]] = defaultdict(list)
    for implications in (*others, *(declared.implications for declared in claims.values())):
        for word, implied in implications.items():
            together[word].extend(implied)
    cycle = find_cycle(together)
    steps = set(itertools.pairwise(cycle))
    for file, declared in claims.items():
        words = [word for word, implied in declared.implications.items() if any((word, to) in steps for to in implied)]
        if words and file not in held:
            message = f"capability implications form a cycle: {' -> '.join(cycle)}"
            yield tree.files[file].error(("implications", words[0]), message)
