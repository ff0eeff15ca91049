"""Bringing a draft in line with a tree of manifests: only differences are staged.

What was in force before is in the registry, by source. So a restart changes only what the files change, and a retained
file keeps what it declared last across restarts too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.changes import Implications
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.errors import RegistryError, UnknownModuleError, VocabularyError
from dspy_registry.registry_store.labels import LabelUpdate
from dspy_registry.registry_store.layers import CLIENT, DEFAULTS_PREFIX, MANIFEST_PREFIX, Default, Layer
from dspy_registry.registry_store.policy import Policy
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.labels import set_labels
from dspy_registry.writer.manifests.declarations import Declarations, DeclaredLabel, ManifestError
from dspy_registry.writer.manifests.declared_aliases import DeclaredAlias, declared_aliases
from dspy_registry.writer.manifests.lines import Path
from dspy_registry.writer.manifests.tree import NOTHING, Plan, Tree, compile_tree
from dspy_registry.writer.policies import set_policy

_SEARCHES: Final = 20
"""Errors for unknown names that name close ones."""

Refused = dict[str, tuple[ManifestError, ...]]


class Loaded(msgspec.Struct, frozen=True):
    """The result of loading a tree.

    `modules` are the full names that manifests declare. `needs_registry`: an error depends on other registered modules,
    so it may disappear without a change of a file. `aliases` and `labels` are those that came into force.
    """

    modules: tuple[str, ...]
    retained: frozenset[str]
    errors: tuple[ManifestError, ...]
    needs_registry: bool
    aliases: tuple[DeclaredAlias, ...] = ()
    labels: tuple[DeclaredLabel, ...] = ()


def stage_tree(draft: Draft, tree: Tree) -> Loaded:
    """Stage what the tree declares. A file that the registry refuses is retained, and the others are tried again."""
    in_force = declarations_in_force(draft)
    others = [words for source, words in draft.all_implications().items() if not source.startswith(MANIFEST_PREFIX)]
    refused: Refused = {}
    while True:
        plan = compile_tree(tree, in_force, others, refused)
        child = draft.child()
        found = _Staging(child, tree, plan, in_force).run()
        if not found:
            break
        for error in found:
            refused[error.file] = (*refused.get(error.file, ()), error)
    if child.has_effect:
        draft.absorb(child)
    kept = (in_force.get(file, NOTHING) for file in plan.retained)
    modules = tuple(name for declared in (*plan.effective.values(), *kept) for name in declared.modules)
    labels = tuple(label for declared in plan.effective.values() for label in declared.labels)
    return Loaded(modules, plan.retained, plan.errors, bool(refused), declared_aliases(plan.effective), labels)


def declarations_in_force(draft: Draft) -> dict[str, Declarations]:
    """What manifests declare in the registry now, by file."""
    modules: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    aliases: dict[str, dict[str, str]] = defaultdict(dict)
    implications: dict[str, Implications] = {}
    defaults: dict[str, tuple[Default, ...]] = {}
    labels: dict[str, tuple[DeclaredLabel, ...]] = {}
    policies: dict[str, dict[str, Policy]] = defaultdict(dict)
    for name, layer in draft.catalog.layers_from(MANIFEST_PREFIX):
        modules[_file(layer.source)][name] = layer.fields
    for alias, meaning in draft.all_aliases().items():
        if meaning.source.startswith(MANIFEST_PREFIX):
            aliases[_file(meaning.source)][alias] = meaning.name
    for source, words in draft.all_implications().items():
        if source.startswith(MANIFEST_PREFIX):
            implications[_file(source)] = words
    for source, rules in draft.all_defaults().items():
        defaults[_file(source)] = rules
    for name, label, kept in draft.catalog.labels_from(MANIFEST_PREFIX):
        file = _file(kept.source)
        labels[file] = (*labels.get(file, ()), DeclaredLabel(name, label, kept.versions))
    for (source, pattern), policy in draft.all_policies().items():
        if source.startswith(MANIFEST_PREFIX):
            policies[_file(source)][pattern] = policy
    return {
        file: Declarations(
            modules.get(file, {}),
            aliases.get(file, {}),
            implications.get(file, {}),
            defaults.get(file, ()),
            labels.get(file, ()),
            policies.get(file, {}),
        )
        for file in sorted({*modules, *aliases, *implications, *defaults, *labels, *policies})
    }


def _file(source: str) -> str:
    return source.partition(":")[2]


class _Staging:
    """One attempt. `run` returns the registry's refusals. If there are any, the draft must be dropped."""

    def __init__(self, draft: Draft, tree: Tree, plan: Plan, in_force: Mapping[str, Declarations]) -> None:
        self._draft = draft
        self._tree = tree
        self._effective = plan.effective
        self._old = {file: declared for file, declared in in_force.items() if file not in plan.retained}
        self._errors: list[ManifestError] = []
        self._searches = 0

    def run(self) -> list[ManifestError]:
        self._implications()
        self._defaults()
        self._modules()
        self._aliases()
        self._policies()
        self._labels()
        return self._errors

    def _refuse(self, file: str, path: Path, error: RegistryError) -> None:
        self._errors.append(self._tree.files[file].error(path, error.message))

    def _implications(self) -> None:
        """Remove all old implications before setting new ones. So a cycle exists halfway only if the result has one."""
        changed = {
            file: self._effective.get(file, NOTHING).implications
            for file in {**self._old, **self._effective}
            if self._effective.get(file, NOTHING).implications != self._old.get(file, NOTHING).implications
        }
        for file in changed:
            self._draft.set_implications(MANIFEST_PREFIX + file, {})
        for file, words in changed.items():
            try:
                self._draft.set_implications(MANIFEST_PREFIX + file, words)
            except VocabularyError as error:
                self._refuse(file, ("implications",), error)

    def _defaults(self) -> None:
        for file in {**self._old, **self._effective}:
            rules = self._effective.get(file, NOTHING).defaults
            if encode(rules) != encode(self._old.get(file, NOTHING).defaults):
                try:
                    self._draft.set_defaults(DEFAULTS_PREFIX + file, rules)
                except RegistryError as error:
                    self._refuse(file, ("defaults",), error)

    def _modules(self) -> None:
        """A module that moves from one file to another changes its layer in one step."""
        old = {name: (file, fields) for file, one in self._old.items() for name, fields in one.modules.items()}
        new = {name: (file, fields) for file, one in self._effective.items() for name, fields in one.modules.items()}
        for name, (file, fields) in new.items():
            was = old.get(name)
            if was is None or was[0] != file or encode(was[1]) != encode(fields):
                self._relayer(name, was[0] if was else "", Layer(MANIFEST_PREFIX + file, fields), file)
        for name, (file, _) in old.items():
            if name not in new:
                self._relayer(name, file, None, file)

    def _relayer(self, name: str, old_file: str, layer: Layer | None, file: str) -> None:
        layers = dict(self._draft.layers_of(name))
        layers.pop(MANIFEST_PREFIX + old_file, None)
        if layer is not None:
            layers[layer.source] = layer
        try:
            self._draft.relayer(name, layers)
        except RegistryError as error:
            if layer is None:
                raise
            self._refuse(file, self._tree.files[file].places[name], error)

    def _aliases(self) -> None:
        """A client's alias wins, as its modules do."""
        new = {alias: (file, name) for file, one in self._effective.items() for alias, name in one.aliases.items()}
        old = {alias: file for file, one in self._old.items() for alias in one.aliases}
        for alias, file in old.items():
            meaning = self._draft.alias(alias)
            if alias not in new and meaning is not None and meaning.source == MANIFEST_PREFIX + file:
                self._draft.remove_alias(alias)
        for alias, (file, name) in new.items():
            meaning = self._draft.alias(alias)
            if meaning is None or meaning.source != CLIENT:
                self._alias(file, alias, name)

    def _policies(self) -> None:
        """What is no longer declared goes first, so that there is room."""
        for file, declared in self._old.items():
            for pattern in declared.policies.keys() - self._effective.get(file, NOTHING).policies.keys():
                set_policy(self._draft, pattern, None, MANIFEST_PREFIX + file)
        for file, declared in self._effective.items():
            for place, (pattern, policy) in enumerate(declared.policies.items()):
                try:
                    set_policy(self._draft, pattern, policy, MANIFEST_PREFIX + file)
                except RegistryError as error:
                    self._refuse(file, ("policies", place), error)

    def _alias(self, file: str, alias: str, name: str) -> None:
        path = ("aliases", alias)
        if self._draft.module(name) is None:
            self._refuse(file, path, self._unknown(name))
            return
        try:
            self._draft.set_alias(alias, name, MANIFEST_PREFIX + file)
        except RegistryError as error:
            self._refuse(file, path, error)

    def _labels(self) -> None:
        """A client's label wins, as its modules do. They come last: a label may name a version that is staged here."""
        declared = {(one.name, one.label) for here in self._effective.values() for one in here.labels}
        for file, here in self._old.items():
            for one in here.labels:
                current = self._draft.labels_of(one.name).get(one.label)
                is_own = current is not None and current.source == MANIFEST_PREFIX + file
                if is_own and (one.name, one.label) not in declared:
                    set_labels(self._draft, (LabelUpdate(one.name, one.label, None),))
        for file, here in self._effective.items():
            for index, one in enumerate(here.labels):
                current = self._draft.labels_of(one.name).get(one.label)
                if current is None or current.source != CLIENT:
                    self._label(file, ("labels", index), one)

    def _unknown(self, name: str) -> UnknownModuleError:
        """With close names, but for the first errors only: the search is slow for thousands."""
        self._searches += 1
        return self._draft.catalog.unknown(name) if self._searches <= _SEARCHES else UnknownModuleError(name)

    def _label(self, file: str, path: Path, declared: DeclaredLabel) -> None:
        if self._draft.module(declared.name) is None:
            self._refuse(file, path, self._unknown(declared.name))
            return
        weights = {version: float(count) for version, count in declared.versions.items()}
        try:
            update = LabelUpdate(declared.name, declared.label, weights)
            set_labels(self._draft, (update,), MANIFEST_PREFIX + file)
        except RegistryError as error:
            self._refuse(file, path, error)
