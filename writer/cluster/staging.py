"""A client's change as a change of the cluster: staged on a draft of what this host has applied, then read off it.

Both are pure: a draft goes in, global records come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dspy_registry.registry_store.changes import Alias
from dspy_registry.registry_store.cluster_rows import VERSIONS, GlobalRow, row_key, split_row_key
from dspy_registry.registry_store.errors import (
    ClusterMembershipError,
    ConflictError,
    InvalidArgumentError,
    NotPossibleError,
    RegistryError,
)
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.layout import ALIASES, META_VOCABULARY, MODULES, POLICIES
from dspy_registry.registry_store.protocol import Register, RemoveAlias, SetLabels, Unregister
from dspy_registry.registry_store.validation import check_expected_version
from dspy_registry.writer.cluster.global_rollouts import refuse_rollouts, rollout_changes
from dspy_registry.writer.cluster.global_rows import load_row, part_key
from dspy_registry.writer.cluster.keys import BATCHES, Keys
from dspy_registry.writer.cluster.label_staging import (
    drop_global_labels,
    label_changes,
    refuse_what_is_local,
    set_global_labels,
)
from dspy_registry.writer.cluster.program_staging import program_changes
from dspy_registry.writer.cluster.records import (
    KINDS,
    GlobalAlias,
    GlobalModule,
    GlobalPolicy,
    GlobalWords,
    withdraw,
)
from dspy_registry.writer.daemon.group import Work
from dspy_registry.writer.daemon.publication import PublicationRequest
from dspy_registry.writer.daemon.requests import SingleRequest, decode_labels, decode_module, stage_message
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry


class GlobalRequest(Work):
    """A request that the cluster has to accept: a client's, or the leader's.

    `held` are revisions of keys that must not have changed when it is accepted. With them it is no group's member.
    `reads`, once it is staged, is the module of which it has read the records; None: it may have read anything.
    """

    is_answered = False
    held: Mapping[bytes, int] = {}
    reads: bytes | None = None

    def __init__(self, request: Work) -> None:
        self.request = request
        self.client, self.id, self.oldest = request.client, request.id, request.oldest
        self.by, self.held_bytes, self.repeats = request.by, request.held_bytes, request.repeats

    def stage(self, draft: Draft) -> None:
        """Stage it as the cluster counts versions."""
        refuse_unread_batch(draft)
        draft.version_floor = partial(_last_version, draft)
        message = self.request.message if isinstance(self.request, SingleRequest) else None
        if isinstance(message, Register):
            self._register(draft, message)
        else:
            stage_globally(draft, message, self.request)
        refuse_rollouts(draft)
        for name, entry in draft.modules.items():
            row = module_row(draft, name)
            if row is None:
                continue
            if row.aside:
                raise ClusterMembershipError(
                    f"the cluster has a {name} that this host could not take over: {row.aside}",
                    remedy="Change it on a host of the release that wrote it, or upgrade this one.",
                )
            if row.is_live and (entry is None or entry.source != CLIENT):
                drop_global_labels(draft, name)
        refuse_what_is_local(draft)

    def _register(self, draft: Draft, message: Register) -> None:
        info = decode_module(message.module)
        self.reads = info.name.encode()
        _check_expected(draft, info.name, message.expected_version)
        draft.register(info)

    def is_in_force(self, draft: Draft, error: RegistryError) -> bool:
        """See `Work.is_in_force`."""
        return self.request.is_in_force(draft, error)

    def success(self, revision: int) -> Any:
        """See `Work.success`."""
        return self.request.success(revision)

    def failure(self, error: BaseException) -> Any:
        """See `Work.failure`."""
        return self.request.failure(error)

    def resolve(self, answer: Any) -> None:
        """See `Work.resolve`."""
        self.request.resolve(answer)


def refuse_unread_batch(draft: Draft) -> None:
    """Raises ClusterMembershipError while a batch is set aside: it may hold any module, and a version of it."""
    for place, _ in draft.catalog.cluster_rows(row_key(BATCHES, b"")):
        raise ClusterMembershipError(
            f"the cluster has a batch {split_row_key(place)[1].decode('ascii', 'replace')} that this host cannot read.",
            remedy="Start the daemon that wrote it, or upgrade this host. Is it damaged? Then remove it from etcd.",
        )


def _last_version(draft: Draft, name: str) -> int:
    """The last version of a name in the cluster: no number that it has used is used again."""
    row = module_row(draft, name)
    return 0 if row is None else row.version


def stage_globally(draft: Draft, message: Any, request: Work) -> None:
    """Stage a request. What only this host declares stays: it is not the cluster's to remove."""
    match message:
        case Unregister():
            current = draft.module(message.name)
            if current is None:
                draft.unregister(message.name)  # which says that it is unknown
            elif current.source != CLIENT:
                raise _local(message.name, current.source)
            withdraw(draft, message.name)
        case RemoveAlias():
            meaning = draft.alias(message.alias)
            if meaning is not None and meaning.source != CLIENT:
                raise _local(message.alias, meaning.source)
            draft.remove_alias(message.alias)
        case SetLabels():
            set_global_labels(draft, decode_labels(message.updates))
        case None if isinstance(request, PublicationRequest):
            _publish(draft, request)
        case None:
            request.stage(draft)
        case _:
            stage_message(draft, message)


def _publish(draft: Draft, request: PublicationRequest) -> None:
    """Stage a publication. What is published is the cluster's, also where only this host declared the module."""
    name = request.publication.name
    _check_expected(draft, name, request.expected_version)
    request.stage_as_client(draft)


def _local(name: str, source: str) -> InvalidArgumentError:
    return NotPossibleError(
        f"{name} is declared by {source} on this host, and no client of the cluster declares it.",
        remedy="Remove it there.",
    )


def _check_expected(draft: Draft, name: str, expected: int | None) -> None:
    """`expected` is the cluster's version; where the cluster has none, 0 or what this host itself declares."""
    check_expected_version(expected)
    current = draft.module(name)
    version = current.version if current is not None else 0
    is_local = current is not None and current.source != CLIENT
    if expected is not None and expected != version and not (is_local and expected == 0):
        raise ConflictError(name, expected, 0 if is_local else version)


def module_row(draft: Draft, name: str) -> GlobalRow | None:
    """What this host knows of a global module."""
    return load_row(draft, row_key(MODULES, name.encode()))


@dataclass(frozen=True)
class GlobalChanges:
    """What a draft changes globally: values by kind and key. `is_repeated`: it changes a module more than once.

    `removed` are the keys of versions that the cluster need not keep, `names` those of which it keeps none. `programs`
    are the digests that it may not have yet. `frees`: a program may be named by nothing afterwards.
    """

    puts: dict[tuple[bytes, bytes], bytes]
    is_repeated: bool
    removed: Sequence[bytes] = ()
    names: Sequence[str] = ()
    programs: Sequence[bytes] = ()
    frees: bool = False


def global_changes(draft: Draft) -> GlobalChanges:
    """Read off a draft what is to be written to the cluster. New modules have their place within this change."""
    puts: dict[tuple[bytes, bytes], bytes] = {}
    touched = []
    for place, (name, entry) in enumerate(draft.modules.items()):
        module = _module(draft, name, entry, place)
        if module is not None:
            puts[MODULES, name.encode()] = KINDS[MODULES].codec.dump(module)
            touched.append(name)
    for alias, meaning in draft.aliases.meanings.items():
        changed = _alias(draft, alias, meaning)
        if changed is not None:
            puts[ALIASES, alias.encode()] = KINDS[ALIASES].codec.dump(changed)
    for (source, pattern), policy in draft.policies.items():
        if source == CLIENT:
            puts[POLICIES, pattern.encode()] = KINDS[POLICIES].codec.dump(GlobalPolicy(policy))
    if draft.implications is not None:
        words = GlobalWords(draft.implications.get(CLIENT, {}))
        puts[META_VOCABULARY, b"clients"] = KINDS[META_VOCABULARY].codec.dump(words)
    puts.update(rollout_changes(draft))
    found = label_changes(draft, touched)
    puts.update(found.puts)
    past = any(entry.past for entry in draft.modules.values() if entry is not None)
    is_repeated = past or any(draft.dropped.values())
    return GlobalChanges(puts, is_repeated, found.removed, found.names, *program_changes(draft, touched, found))


def removed_prefixes(keys: Keys, found: GlobalChanges) -> list[bytes]:
    """What a change deletes in the cluster, as prefixes of keys."""
    of_names = (part_key(name, "") for name in found.names)
    return [keys.record(VERSIONS, key) for key in (*found.removed, *of_names)]


def _module(draft: Draft, name: str, entry: Entry | None, order: int) -> GlobalModule | None:
    row = module_row(draft, name)
    if entry is not None and entry.source == CLIENT:
        is_kept = row is not None and row.is_live
        return GlobalModule(
            entry.version,
            row.order if row is not None and is_kept else order,
            entry.encoded,
            entry.by,
            0,
            entry.program,
        )
    if row is None or not row.is_live:
        return None
    return GlobalModule(row.version, row.order, None, draft.changed_by.get(name))


def _alias(draft: Draft, alias: str, meaning: Alias | None) -> GlobalAlias | None:
    by = draft.aliases.by.get(alias)
    if meaning is not None and meaning.source == CLIENT:
        return GlobalAlias(meaning.name, by)
    row = load_row(draft, row_key(ALIASES, alias.encode()))
    return GlobalAlias(None, by) if row is not None and row.is_live else None
