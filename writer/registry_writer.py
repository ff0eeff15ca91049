"""The embedded writer: this process is the registry's one writer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dspy_registry.registry_store.arguments import check_callback, typed
from dspy_registry.registry_store.errors import InvalidModuleError
from dspy_registry.registry_store.labels import LabelUpdate, Weights, label_removal, label_update
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.paths import registry_path
from dspy_registry.registry_store.policy import Policy
from dspy_registry.registry_store.program_rows import cut
from dspy_registry.registry_store.protocol import Progress
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.vocabulary import as_implications
from dspy_registry.registry_store.wording import first_of
from dspy_registry.writer import labels, overrides, policies, reconcile
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.member import refuse_member
from dspy_registry.writer.programs import Publication, Published, check_publication, publish
from dspy_registry.writer.store import Store
from dspy_registry.writer.usage_reset import reset_usage

if TYPE_CHECKING:
    from dspy_registry.writer.discovery.report import DiscoveryReport
    from dspy_registry.writer.reconcile import Outcome


_PROBLEMS_SHOWN = 20
_PROGRESS_EVERY = 1000


class RegistryWriter:
    """Changes a registry from within this process, and keeps every other writer out until closed.

    `path` is the registry's folder. None means $DSPY_REGISTRY, else the user's data directory. A missing registry is
    created with the core modules. Each change is durable, and visible to every reader, when the call returns.
    Threads may share a writer. Raises WriterLockedError when there is another writer.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._store = Store(registry_path(path))
        try:
            refuse_member(self._store.environment)
        except BaseException:
            self._store.close()
            raise
        self._by = os.geteuid(), os.getpid()

    def __repr__(self) -> str:
        return f"RegistryWriter({str(self._store.folder)!r})"

    @property
    def store(self) -> Store:
        """The open registry that this writes to."""
        return self._store

    @property
    def revision(self) -> int:
        """The newest committed revision."""
        return self._store.committer.revision

    @typed
    def register_module(self, info: ModuleInfo, *, expected_version: int | None = None) -> int:
        """Register a module, or update it. Returns the revision in which it is visible.

        A record equal to the stored one makes no new version and no new revision. With `expected_version` the call
        succeeds only if that is the current version; 0: if the module is not registered; None: in any case. Raises
        InvalidModuleError naming every wrong field, ConflictError carrying the current version.
        """
        return self._commit(lambda draft: draft.register(info, expected_version))

    @typed
    def register_modules(self, infos: Iterable[ModuleInfo], *, progress: Progress | None = None) -> int:
        """Register many modules in one commit, or no module. Returns the revision in which they are visible.

        `progress(done, total)` is called from time to time, None: it is not. Raises one InvalidModuleError naming what
        is wrong with every module.
        """
        check_callback("progress", progress)
        batch = infos if isinstance(infos, Sequence) else tuple(infos)
        return self._commit(lambda draft: register_all(draft, batch, progress))

    @typed
    def unregister_module(self, name: str) -> int:
        """Remove a module by its full name. Returns the revision in which it is gone. Raises UnknownModuleError."""
        return self._commit(lambda draft: draft.unregister(name))

    @typed
    def release(self, name: str) -> int:
        """End an override: the module goes back to what manifests, core and discovery declare of it.

        An override is a client's record, also one of a rollback, of a module that they declare, too. `name` is a full
        name. Returns the revision in which this is visible; a module that is not overridden stays as it is. Raises
        UnknownModuleError, and InvalidArgumentError when clients alone declare the module.
        """
        return self._commit(lambda draft: overrides.release(draft, name))

    @typed
    def rename_module(self, name: str, new_name: str) -> int:
        """Give a client's module another name. Returns the revision in which it has it.

        Its record, its aliases and its labels go to the new name, with the versions that labels name, numbered from 1.
        The rest of its history and its statistics stay under the old one. Raises
        UnknownModuleError, and InvalidModuleError when the new name is malformed or taken, or when manifests, core or
        discovery declare the module: they would bring the old name back.
        """
        return self._commit(lambda draft: overrides.rename(draft, name, new_name))

    @typed
    def publish_program(
        self, publication: Publication, document: bytes, *, expected_version: int | None = None
    ) -> Published:
        """Publish a program as a version of a module, and set its label, in one commit.

        `document` are the bytes of a ProgramDocument; empty: the document of this digest is stored already. `publish`
        of `dspy_registry.integrations.dspy` makes both from a program. With `expected_version` the call succeeds only
        if that is the version in force; 0: if the module is not registered; None: in any case. Raises
        InvalidProgramError, InvalidModuleError, ConflictError, UpgradeRequiredError.
        """
        check_publication(publication, len(document), expected_version)
        pieces, version = cut(document), 0

        def stage(draft: Draft) -> None:
            nonlocal version
            version = publish(draft, publication, pieces, expected_version)

        return Published(self._commit(stage), publication.name, version, publication.digest.hex())

    @typed
    def set_alias(self, alias: str, name: str) -> int:
        """Let `alias` resolve to the module `name`. Returns the revision in which it does.

        Raises InvalidModuleError for an alias that is malformed or a module's full name, UnknownModuleError.
        """
        return self._commit(lambda draft: draft.set_alias(alias, name))

    @typed
    def remove_alias(self, alias: str) -> int:
        """Remove an alias. Returns the revision in which it is gone. Raises UnknownAliasError."""
        return self._commit(lambda draft: draft.remove_alias(alias))

    @typed
    def set_policy(self, pattern: str, policy: Policy) -> int:
        """Decide about all modules that `pattern` fits. Returns the revision in which this is visible.

        `pattern` is a full name, a shell pattern (`acme.*`), or `pool:NAME`. It replaces a client's earlier policy of
        the same pattern as a whole. Raises InvalidArgumentError naming all that is wrong, and UpgradeRequiredError in a
        registry of format 1.
        """
        return self._commit(lambda draft: policies.set_policy(draft, pattern, policy))

    @typed
    def remove_policy(self, pattern: str) -> int:
        """Remove a client's policy of a pattern. Returns the revision in which it is gone.

        A pattern without one is no error. A manifest's policy of the same pattern counts again. Raises
        InvalidArgumentError for a malformed pattern.
        """
        return self._commit(lambda draft: policies.set_policy(draft, pattern, None))

    @typed
    def set_label(
        self, name: str, label: str, versions: int | Weights, *, expected: int | Weights | None = None
    ) -> int:
        """Let a label of the module `name` name a version, or several with weights: `{3: 90, 4: 10}`.

        `name` is a full name. Only the proportions of weights count. What a label names is kept. With `expected`
        the call succeeds only if the label names just that; 0: if it is not set; None: in any case. Returns the
        revision in which it is visible. Raises InvalidArgumentError for a malformed label or weights,
        UnknownModuleError, UnknownVersionError, LabelConflictError, UpgradeRequiredError.
        """
        return self.set_labels((label_update(name, label, versions, expected),))

    @typed
    def set_labels(self, updates: Iterable[LabelUpdate]) -> int:
        """Set, move and remove up to 128 labels in one commit, or none. Errors are as for `set_label`."""
        checked = labels.checked(updates)
        return self._commit(lambda draft: labels.set_labels(draft, checked))

    @typed
    def remove_label(self, name: str, label: str, *, expected: int | Weights | None = None) -> int:
        """Remove a label of a module. Returns the revision in which it is gone. Raises UnknownLabelError.

        `expected` and further errors are as for `set_label`.
        """
        return self.set_labels((label_removal(name, label, expected),))

    @typed
    def set_implications(self, implications: Mapping[str, Sequence[str]]) -> int:
        """Replace the capability implications that clients declare, and re-index in the same commit.

        Implications of core and manifests stay. Returns the revision in which this is visible. Raises VocabularyError
        naming everything that is malformed, beyond the limits, or part of a cycle.
        """
        words = as_implications(implications)
        return self._commit(lambda draft: draft.set_implications(CLIENT, words))

    @typed
    def apply_discovery(self, report: DiscoveryReport) -> Outcome:
        """Apply what discovery found, in one commit. Returns what this changed.

        What core, a manifest or a client declares stays. A discovered module is removed when its package could be
        looked at and no longer has it.
        """
        reconcile.check_report(report)
        outcome = reconcile.Outcome()
        revision = self._commit(lambda draft: reconcile.apply_discovery(draft, report, outcome))
        outcome.revision = revision
        return outcome

    @typed
    def reset_usage(self, name: str, version: int | None = None) -> None:
        """Forget the statistics of a module, or of one version of it; None: of all versions, and the lifetime totals.

        `name` is a full name, an alias, a short name, or a name that was reported and is not registered. Each process
        keeps what it saw itself of the last calls, and acts on that until calls complete. Raises UnknownModuleError,
        InvalidArgumentError for what is no version.
        """
        self._commit(lambda draft: reset_usage(draft, name, version))

    def close(self) -> None:
        """Release the registry to other writers. Does nothing the second time."""
        self._store.close()

    def __enter__(self) -> RegistryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit(self, stage: Callable[[Draft], None]) -> int:
        return self._store.committer.commit(stage, self._by)


def register_all(draft: Draft, batch: Sequence[ModuleInfo], progress: Progress | None = None) -> None:
    """Stage every module of a batch. Raises one InvalidModuleError for all that cannot be registered."""
    problems: list[str] = []
    for done, info in enumerate(batch):
        if progress is not None and done % _PROGRESS_EVERY == 0:
            progress(done, len(batch))
        try:
            draft.register(info)
        except InvalidModuleError as error:
            problems.extend(f"{error.subject}: {problem}" for problem in error.problems)
    refuse_batch(len(batch), problems)
    if progress is not None:
        progress(len(batch), len(batch))


def refuse_batch(count: int, problems: Sequence[str]) -> None:
    """Raises one InvalidModuleError with all problems of a batch of `count` modules, if there are any."""
    if problems:
        raise InvalidModuleError(f"a batch of {count} modules", first_of(problems, _PROBLEMS_SHOWN))
