"""Whether aliases, layers, history and the change log agree with the modules; checksums of the other rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise

from dspy_registry.registry_store.buckets import BUCKETS
from dspy_registry.registry_store.changes import Alias, Change, alias_codec, change_codec
from dspy_registry.registry_store.check.inspection import (
    ALIASES,
    CHANGES,
    HISTORY,
    LABELS,
    LAYERS,
    VALUES,
    Head,
    Violation,
    text,
)
from dspy_registry.registry_store.cluster_rows import global_row_codec, position_codec
from dspy_registry.registry_store.codec import database_seal, decode_record, encode, key_seal, unseal
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.labels import DAMAGED, label_codec, label_problems, labelled_versions, labels_of
from dspy_registry.registry_store.layers import (
    CLIENT,
    DISCOVERED,
    MANIFEST_PREFIX,
    Layer,
    layer_codec,
    merge,
    rank,
    with_defaults,
)
from dspy_registry.registry_store.layout import (
    CHANGES_KEPT,
    HISTORY_VERSIONS,
    META,
    META_CLUSTER,
    META_FORMAT,
    META_GLOBAL,
    META_ID,
    META_ROLLOUT,
    POLICIES,
    REQUESTS,
    USAGE,
    versioned_key,
)
from dspy_registry.registry_store.names import ALL, last_part, snake_case
from dspy_registry.registry_store.policy import policy_problems
from dspy_registry.registry_store.policy_rows import policy_codec
from dspy_registry.registry_store.protocol import remembered_codec
from dspy_registry.registry_store.rollout import Rollout
from dspy_registry.registry_store.rollout_rows import load_rollout, rollout_key
from dspy_registry.registry_store.usage_rows import row_codec, version_codec, version_of_key
from dspy_registry.registry_store.validation import stored_name_problems

TERM_KINDS = ("capability", "category", "pool", "native", "gpu", "memory", "compute", "short", "home")

_CHANGES_ALLOWED = CHANGES_KEPT + 1024  # the writer drops old entries many at a time
_NAMES_FOLLOWED = 100_000


def aliases(head: Head) -> Iterator[Violation]:
    """What is wrong with declared aliases."""
    for key, value in head.rows(head.dbs.aliases):
        where = f"aliases/{text(key)}"
        try:
            alias: Alias = alias_codec.load(value, key, head.dbs.format)
        except CorruptRecordError as error:
            yield Violation(VALUES, where, str(error))
            continue
        if stored_name_problems(text(key)):
            yield Violation(ALIASES, where, "; ".join(stored_name_problems(text(key))))
        if not head.is_registered(alias.name):
            yield Violation(ALIASES, where, f"means {alias.name}, which is not registered")


# Layers


def layers(head: Head) -> Iterator[Violation]:
    """What is wrong with layers, and with records that are not what their layers make."""
    rows = head.rows(head.dbs.layers)
    for name, group in groupby(rows, key=lambda row: row[0].partition(b"\0")[0]):
        declared: dict[str, Layer] = {}
        for key, value in group:
            source = key[len(name) + 1 :]
            where = f"layers/{text(name)}/{text(source)}"
            try:
                layer: Layer = layer_codec.load(value, key, head.dbs.format)
            except CorruptRecordError as error:
                yield Violation(VALUES, where, str(error))
                break
            declared[layer.source] = layer
            if layer.source != text(source):
                yield Violation(LAYERS, where, f"holds the layer of {layer.source}")
        else:
            yield from _layers_of(head, text(name), declared)


def _layers_of(head: Head, name: str, declared: dict[str, Layer]) -> Iterator[Violation]:
    where = f"layers/{name}"
    stored = head.module(name)
    if stored is None:
        if not head.is_registered(name):
            yield Violation(LAYERS, where, "is declared, but not registered")
        return
    try:
        given = with_defaults(name, declared, head.defaults)
        ranks = [rank(source) for source in declared]
        info, source = merge(name, declared.values())
    except (KeyError, TypeError, ValueError) as error:
        yield Violation(LAYERS, where, f"cannot be merged ({error!r})")
        return
    if DISCOVERED in declared and encode(given) != encode(declared):
        yield Violation(LAYERS, where, "has other defaults than the rules for discovered modules give it")
    if max(ranks) >= rank(CLIENT):
        yield Violation(LAYERS, where, "a client declares whole records, not layers")
    if stored.provenance.source == CLIENT:
        return
    if encode(info) != encode(stored.info):
        yield Violation(LAYERS, where, "do not make the record that is stored")
    if source != stored.provenance.source:
        yield Violation(LAYERS, where, f"come from {source}, but the record says {stored.provenance.source}")


# History


def history(head: Head) -> Iterator[Violation]:
    """What is wrong with the versions kept of each module."""
    for name, keys in groupby(_history_rows(head), key=lambda row: row[0]):
        versions: list[int] = []
        taken_over: set[int] = set()
        for _, version, value in keys:
            versions.append(version)
            yield from _past_version(text(name), version, value, taken_over)
        yield from _versions(head, text(name), versions, taken_over)


def _history_rows(head: Head) -> Iterator[tuple[bytes, int, bytes]]:
    for key, value in head.rows(head.dbs.history):
        yield key[:-5], int.from_bytes(key[-4:], "big"), value


def _past_version(name: str, version: int, value: bytes, taken_over: set[int]) -> Iterator[Violation]:
    where = f"history/{name}/{version}"
    try:
        stored = decode_record(value, name)
    except CorruptRecordError as error:
        yield Violation(VALUES, where, str(error))
        return
    if stored.provenance.global_revision:
        taken_over.add(version)
    if (stored.info.name, stored.provenance.version) != (name, version):
        yield Violation(HISTORY, where, f"holds version {stored.provenance.version} of {stored.info.name}")


def _versions(head: Head, name: str, versions: list[int], taken_over: set[int]) -> Iterator[Violation]:
    """Versions follow each other, but for those taken over from a cluster: a host that was away has not seen all."""
    where = f"history/{name}"
    labels = labels_of(head.txn, head.dbs, name, are_damages_told=False).values()
    labelled = labelled_versions(labels)
    recent = [version for version in versions if version > versions[-1] - HISTORY_VERSIONS]
    older = [version for version in versions[: -len(recent)] if version not in labelled]
    if older and DAMAGED not in labels:
        yield Violation(HISTORY, where, f"keeps versions {older}, beyond the last {HISTORY_VERSIONS} and without label")
    has_gap = any(after != before + 1 and after not in taken_over for before, after in pairwise(recent))
    if has_gap or (len(recent) < HISTORY_VERSIONS and older and recent[0] not in taken_over):
        yield Violation(HISTORY, where, f"keeps versions {recent}, which are not consecutive")
    stored = head.module(name)
    if stored is None:
        return
    is_next = versions[-1] == stored.provenance.version - 1
    if not is_next and not (stored.provenance.global_revision and versions[-1] < stored.provenance.version):
        yield Violation(HISTORY, where, f"ends with version {versions[-1]}, in force is {stored.provenance.version}")


# Labels


def labels(head: Head) -> Iterator[Violation]:
    """What is wrong with labels: each names versions that are kept, of a registered module."""
    for key, value in head.rows(head.dbs.labels):
        name, _, label = text(key).partition("\0")
        where = f"labels/{name}/{label}"
        try:
            runs = label_codec.load(value, key, head.dbs.format).runs
        except CorruptRecordError as error:
            yield Violation(VALUES, where, str(error))
            continue
        for problem in label_problems(label):
            yield Violation(LABELS, where, problem)
        if sum(length for _, length in runs) != BUCKETS or not all(length > 0 for _, length in runs):
            yield Violation(LABELS, where, f"does not have {BUCKETS} buckets")
        if not head.is_registered(name):
            yield Violation(LABELS, where, f"is of {name}, which is not registered")
            continue
        stored = head.module(name)
        in_force = stored.provenance.version if stored else 0
        for version in sorted({version for version, _ in runs}):
            past = head.txn.get(versioned_key(name, version), None, head.dbs.history)
            if past is None and stored is not None and version != in_force:
                yield Violation(LABELS, where, f"names version {version}, which is not kept")


# The change log


def changes(head: Head) -> Iterator[Violation]:
    """What is wrong with the change log."""
    newest = head.state.revision
    first = last = None
    for key, value in head.rows(head.dbs.changes):
        revision = int.from_bytes(key, "big")
        if last is not None and revision != last + 1:
            yield Violation(CHANGES, f"changes/{revision}", f"comes after {last}")
        first = revision if first is None else first
        last = revision
        yield from _change(head, key, value)
    if last != (newest or None):
        yield Violation(CHANGES, "changes", f"ends with {last}, but the newest revision is {newest}")
    if first is not None and newest - first >= _CHANGES_ALLOWED:
        yield Violation(CHANGES, "changes", f"keeps {newest - first + 1} entries, {_CHANGES_ALLOWED} are allowed")
    if first is not None and newest - first < CHANGES_KEPT - 1 and first != 1:
        yield Violation(CHANGES, "changes", f"begins with {first}, although it is not full")
    yield from _last_words(head)


def _change(head: Head, key: bytes, value: bytes) -> Iterator[Violation]:
    revision = int.from_bytes(key, "big")
    where = f"changes/{revision}"
    try:
        change: Change = change_codec.load(value, key, head.dbs.format)
    except CorruptRecordError as error:
        yield Violation(VALUES, where, str(error))
        return
    if change.revision != revision:
        yield Violation(CHANGES, where, f"holds the entry of {change.revision}")
    if change.everything and (change.modules or change.keys or change.terms):
        yield Violation(CHANGES, where, "says everything, and lists something")
    names = [module.name for module in change.modules]
    # Release 0.1.0 also logged forms of a name that are empty or too long to be asked for.
    derived = {form for name in names for form in (last_part(name), snake_case(last_part(name)))}
    for name in (*names, *(asked for asked in change.keys if asked not in derived)):
        if stored_name_problems(name):
            yield Violation(CHANGES, where, f"names {name!r}, which is not a valid name")
    for term in change.terms:
        kind, colon, word = term.partition(":")
        if term != ALL and not (colon and word and kind in TERM_KINDS):
            yield Violation(CHANGES, where, f"names {term!r}, which is not a term")
    unnamed = {module.name for module in change.modules}.difference(change.keys)
    if unnamed:
        yield Violation(CHANGES, where, f"changes {sorted(unnamed)[:3]}, but does not list them in keys")


def _last_words(head: Head) -> Iterator[Violation]:
    """The newest entry that names a module must agree with what is registered."""
    followed: set[str] = set()
    cursor = head.txn.cursor(head.dbs.changes)
    for key, value in cursor.iterprev():
        try:
            change: Change = change_codec.load(value, key, head.dbs.format)
        except CorruptRecordError:
            return
        if change.everything or len(followed) > _NAMES_FOLLOWED:
            return
        for module in change.modules:
            if module.name in followed:
                continue
            followed.add(module.name)
            stored = head.module(module.name)
            is_gone = module.action == "unregistered"
            standing = stored.provenance.version if stored else 0
            if head.is_registered(module.name) == is_gone or (stored and standing != module.version):
                found = f"version {standing}" if stored else "nothing"
                message = f"says {module.name} {module.version} {module.action}, but the registry has {found}"
                yield Violation(CHANGES, f"changes/{change.revision}", message)


# What writer and usage keep


def sealed_rows(head: Head) -> Iterator[Violation]:
    """Rows of which the seal is looked at, and of usage the name and version that a row holds."""
    for database in (REQUESTS, USAGE, POLICIES):
        seal = database_seal(database)
        for key, value in head.rows(getattr(head.dbs, text(database))):
            where = f"{text(database)}/{text(key)}"
            try:
                unseal(value, f"the row of {text(key)}", key_seal(seal, key, head.dbs.format))
                if database == REQUESTS:
                    remembered_codec.load(value, key, head.dbs.format)
                elif database == POLICIES:
                    yield from _policy(head, where, key, value)
                elif database == USAGE and not key.startswith(b"\0"):
                    yield from _usage(head, where, key, value)
            except CorruptRecordError as error:
                yield Violation(VALUES, where, str(error))


def meta_rows(head: Head) -> Iterator[Violation]:
    """What is wrong with what a host keeps of a cluster and of rollouts, and with rows that this release does not know.

    A later release may add rows to a format. It seals them under their keys too.
    """
    format, seal = head.dbs.format, database_seal(META)
    for key, value in head.rows(head.dbs.meta):
        try:
            if key == META_CLUSTER:
                position_codec.load(value, key, format)
            elif key.startswith(META_GLOBAL):
                global_row_codec.load(value, key, format)
            elif key.startswith(META_ROLLOUT):
                yield from _rollout(key, load_rollout(value, key, format))
            elif key not in (META_FORMAT, META_ID):
                unseal(value, f"the row of {text(key)}", key_seal(seal, key, format))
        except CorruptRecordError as error:
            yield Violation(VALUES, f"meta/{text(key)}", str(error))


def _rollout(key: bytes, found: Rollout) -> Iterator[Violation]:
    if rollout_key(found.name, found.label) != key:
        yield Violation(VALUES, f"meta/{text(key)}", f"holds the rollout of {found.name}@{found.label}")


def _policy(head: Head, where: str, key: bytes, value: bytes) -> Iterator[Violation]:
    source, _, pattern = text(key).partition("\0")
    policy = policy_codec.load(value, key, head.dbs.format)
    if source != CLIENT and not source.startswith(MANIFEST_PREFIX):
        yield Violation(VALUES, where, f"is of a source {source!r} that no policy has")
    for problem in policy_problems(pattern, policy):
        yield Violation(VALUES, where, problem)


def _usage(head: Head, where: str, key: bytes, value: bytes) -> Iterator[Violation]:
    of_version = version_of_key(key)
    if of_version is None:
        found, wanted = row_codec.load(value, key, head.dbs.format).usage.name, text(key)
    else:
        usage = version_codec.load(value, key, head.dbs.format).usage
        found, wanted = f"{usage.name}, version {usage.version}", "{}, version {}".format(*of_version)
        if head.txn.get(of_version[0].encode(), None, head.dbs.usage) is None:
            yield Violation(VALUES, where, f"is there, and the usage of {of_version[0]} in all is missing")
    if found != wanted:
        yield Violation(VALUES, where, f"holds the usage of {found}")
