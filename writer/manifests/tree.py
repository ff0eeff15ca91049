"""A whole tree of manifests, compared: which files come into force, and what is wrong between them. Pure.

A file with any error is *retained*: what it declared last stays in force. The registry knows it, and the other files
are compared with it as if it were in the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Final

import msgspec

from dspy_registry.registry_store.changes import Implications
from dspy_registry.registry_store.vocabulary import find_cycle
from dspy_registry.registry_store.wording import listed
from dspy_registry.writer.manifests.declarations import Declarations, LoadedFile, ManifestError, shown
from dspy_registry.writer.manifests.lines import Path

NOTHING = Declarations()

_OTHERS_SHOWN: Final = 8


class Tree(msgspec.Struct, frozen=True):
    """All files of a folder as they were read together.

    `unknown` are files and folders that cannot be read now: they, and all files in these folders, are retained.
    `errors` are about the folder itself.
    """

    files: dict[str, LoadedFile]
    unknown: tuple[str, ...] = ()
    errors: tuple[ManifestError, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """What comes into force, by file, the files that are retained, and the errors that are the reason."""

    effective: dict[str, Declarations]
    retained: frozenset[str]
    errors: tuple[ManifestError, ...]


def compile_tree(
    tree: Tree,
    in_force: Mapping[str, Declarations],
    others: Sequence[Implications] = (),
    refused: Mapping[str, tuple[ManifestError, ...]] | None = None,
) -> Plan:
    """Decide about each file.

    `in_force` is what the registry has now, by file. `others` are the implications declared elsewhere (core, clients).
    `refused` are the registry's objections, by file. A file in `in_force` that is neither effective nor retained is
    gone.
    """
    refused = refused or {}
    errors = [*tree.errors, *(error for found in refused.values() for error in found)]
    errors += [error for loaded in tree.files.values() for error in loaded.errors]
    retained = {file for file in in_force if is_unknown(file, tree.unknown)} | set(refused)
    retained |= {file for file, loaded in tree.files.items() if loaded.declared is None}
    while True:
        claims = _claims(tree, in_force, retained)
        found = [*_conflicts(tree, claims, retained), *_cycles(tree, claims, retained, others)]
        if not found:
            break
        errors += found
        retained |= {error.file for error in found}
    effective = {file: declared for file, declared in claims.items() if file not in retained}
    return Plan(effective, frozenset(retained), shown(errors))


def is_unknown(file: str, unknown: Iterable[str]) -> bool:
    """Whether a file is one of these, or in one of these folders; "" is the whole tree."""
    return any(not place or file == place or file.startswith(f"{place}/") for place in unknown)


def _claims(tree: Tree, in_force: Mapping[str, Declarations], retained: set[str]) -> dict[str, Declarations]:
    """What each file declares, sorted by file. For a retained file: what it declared last."""
    claims = {file: in_force.get(file, NOTHING) for file in retained}
    for file, loaded in tree.files.items():
        if file not in retained and loaded.declared is not None:
            claims[file] = loaded.declared
    return dict(sorted(claims.items()))


def _conflicts(tree: Tree, claims: Mapping[str, Declarations], retained: set[str]) -> Iterator[ManifestError]:
    """Find what several files declare, and aliases that are full names: errors of all files not yet retained."""
    modules: dict[str, list[str]] = defaultdict(list)
    aliases: dict[str, list[str]] = defaultdict(list)
    for file, declared in claims.items():
        for name in declared.modules:
            modules[name].append(file)
        for alias in declared.aliases:
            aliases[alias].append(file)
    yield from _repeated_policies(tree, claims, retained)
    for name, files in modules.items():
        for file, others in _others(files, retained):
            path = (*tree.files[file].places[name], "name")
            yield _conflict(tree, retained, file, path, f"{name!r}", others)
    for alias, files in aliases.items():
        for file, others in _others(files, retained):
            yield _conflict(tree, retained, file, ("aliases", alias), f"the alias {alias!r}", others)
    yield from _label_conflicts(tree, claims, retained)
    yield from _shadowed(tree, modules, aliases, retained)


def _label_conflicts(tree: Tree, claims: Mapping[str, Declarations], retained: set[str]) -> Iterator[ManifestError]:
    labels: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file, declared in claims.items():
        for one in declared.labels:
            labels[one.name, one.label].append(file)
    for (name, label), files in labels.items():
        for file, others in _others(files, retained):
            declared_there = [(one.name, one.label) for one in claims[file].labels]
            path = ("labels", declared_there.index((name, label)))
            yield _conflict(tree, retained, file, path, f"the label {name}@{label}", others)


def _repeated_policies(tree: Tree, claims: Mapping[str, Declarations], retained: set[str]) -> Iterator[ManifestError]:
    patterns: dict[str, list[str]] = defaultdict(list)
    for file, declared in claims.items():
        for pattern in declared.policies:
            patterns[pattern].append(file)
    for pattern, files in patterns.items():
        for file, others in _others(files, retained):
            place = list(claims[file].policies).index(pattern)
            yield _conflict(tree, retained, file, ("policies", place, "pattern"), f"the policy of {pattern!r}", others)


def _others(files: list[str], retained: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Each of several files that declare the same, with the other files."""
    for file in files if len(files) > 1 else ():
        if file not in retained:
            others = list(islice((other for other in files if other != file), _OTHERS_SHOWN))
            more = len(files) - 1 - len(others)
            yield file, [*others, f"{more} more files"] if more else others


def _shadowed(
    tree: Tree, modules: Mapping[str, list[str]], aliases: Mapping[str, list[str]], retained: set[str]
) -> Iterator[ManifestError]:
    for alias in sorted(aliases.keys() & modules.keys()):
        told = f"{alias!r} is the full name of a module, declared by {listed(modules[alias], _OTHERS_SHOWN)}"
        for file in aliases[alias]:
            if file not in retained:
                yield tree.files[file].error(("aliases", alias), f"{told}; full names always win")


def _conflict(tree: Tree, retained: set[str], file: str, path: Path, what: str, others: list[str]) -> ManifestError:
    said = [
        f"{other} (which is in error: what it declared last counts)" if other in retained else other for other in others
    ]
    return tree.files[file].error(path, f"{what} is declared by {file} and by {', '.join(said)}")


def _cycles(
    tree: Tree, claims: Mapping[str, Declarations], retained: set[str], others: Iterable[Implications]
) -> Iterator[ManifestError]:
    """The first cycle of implications: an error of each file that is part of it and not yet retained."""
    together: dict[str, list[str]] = defaultdict(list)
    for implications in (*others, *(declared.implications for declared in claims.values())):
        for word, implied in implications.items():
            together[word].extend(implied)
    cycle = find_cycle(together)
    steps = set(pairwise(cycle))
    for file, declared in claims.items():
        words = [word for word, implied in declared.implications.items() if any((word, to) in steps for to in implied)]
        if words and file not in retained:
            message = f"capability implications form a cycle: {' -> '.join(cycle)}"
            yield tree.files[file].error(("implications", words[0]), message)
