"""Whether a row is what was stored under its key, and how new it is. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.buckets import BUCKETS
from dspy_registry.registry_store.changes import alias_codec, change_codec, implications_codec, state_codec
from dspy_registry.registry_store.codec import database_seal, decode_record, key_seal, open_record, unseal
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.labels import label_codec, label_problems
from dspy_registry.registry_store.layers import defaults_codec, layer_codec, rank
from dspy_registry.registry_store.order import load_row
from dspy_registry.registry_store.policy_rows import policy_codec, split_key
from dspy_registry.registry_store.records import StoredModule
from dspy_registry.registry_store.revision import ID_BYTES
from dspy_registry.registry_store.rollout_rows import load_rollout
from dspy_registry.registry_store.usage_rows import row_codec, version_codec, version_of_key

READ: Final = tuple(name for name in layout.DATABASES if name not in (layout.POSTINGS, layout.REQUESTS))
"""The databases whose rows are taken over, or show what there was. Postings are made of the records."""

_SEALS: Final = {name: database_seal(name) for name in layout.DATABASES}
_META: Final = {
    layout.META_STATE: state_codec,
    layout.META_VOCABULARY: implications_codec,
    layout.META_DEFAULTS: defaults_codec,
}


def problem_of(database: bytes, key: bytes, value: bytes, format: int) -> str | None:
    """What is wrong with a row; None: nothing."""
    try:
        _LOOKS.get(database, _sealed)(database, key, value, format)
    except (CorruptRecordError, UnicodeDecodeError, KeyError) as error:
        return str(error.message if isinstance(error, CorruptRecordError) else error)
    return None


def age_of(database: bytes, key: bytes, value: bytes, format: int) -> int:
    """A number that is larger for the newer of two sound rows with one key; 0 where nothing tells."""
    if database in (layout.MODULES, layout.HISTORY):
        return decode_record(value, "").provenance.revision
    if database == layout.META and key == layout.META_STATE:
        return int(state_codec.load(value, key, format).revision)
    if database == layout.USAGE and not key.startswith(b"\0"):
        return int(_usage(key, value, format).calls)
    return 0


def version_key_parts(key: bytes) -> tuple[str, int]:
    """(name, version) of a key of `history`. Raises UnicodeDecodeError, CorruptRecordError."""
    if len(key) < 6 or key[-5]:
        raise CorruptRecordError("the key is not one of a version.")
    return key[:-5].decode(), int.from_bytes(key[-4:], "big")


def past_record(key: bytes, value: bytes) -> StoredModule:
    """The record of a replaced version. Raises CorruptRecordError, UnicodeDecodeError."""
    name, version = version_key_parts(key)
    stored = decode_record(value, name)
    if (stored.info.name, stored.provenance.version) != (name, version):
        raise CorruptRecordError(f"version {stored.provenance.version} of {stored.info.name} stands there.")
    return stored


def _sealed(database: bytes, key: bytes, value: bytes, format: int) -> None:
    unseal(value, "the row", key_seal(_SEALS[database], key, format))


def _meta(_database: bytes, key: bytes, value: bytes, format: int) -> None:
    if key in _META:
        _META[key].load(value, key, format)
    elif key.startswith(layout.META_ROLLOUT):
        load_rollout(value, key, format)
    elif not (value.isdigit() if key == layout.META_FORMAT else len(value) == ID_BYTES):
        raise CorruptRecordError("it has another size or form than it must have.")


def _module(_database: bytes, key: bytes, value: bytes, _format: int) -> None:
    open_record(value, key.decode())


def _past(_database: bytes, key: bytes, value: bytes, _format: int) -> None:
    past_record(key, value)


def _row_of_names(_database: bytes, key: bytes, value: bytes, format: int) -> None:
    if len(key) != len(layout.sequence_row_key(0)):
        raise CorruptRecordError("the key is not one of a row of names.")
    load_row(value, key, format)


def _alias(_database: bytes, key: bytes, value: bytes, format: int) -> None:
    key.decode()
    alias_codec.load(value, key, format)


def _layer(_database: bytes, key: bytes, value: bytes, format: int) -> None:
    source = key.partition(b"\0")[2].decode()
    key.decode()
    rank(source)
    if layer_codec.load(value, key, format).source != source:
        raise CorruptRecordError("the layer of another source stands there.")


def _label(_database: bytes, key: bytes, value: bytes, format: int) -> None:
    name, _, label = key.decode().partition("\0")
    runs = label_codec.load(value, key, format).runs
    if not name or label_problems(label) or sum(length for _, length in runs) != BUCKETS:
        raise CorruptRecordError("it is no label.")


def _policy(_database: bytes, key: bytes, value: bytes, format: int) -> None:
    split_key(key)
    policy_codec.load(value, key, format)


def _change(_database: bytes, key: bytes, value: bytes, format: int) -> None:
    if change_codec.load(value, key, format).revision != int.from_bytes(key, "big"):
        raise CorruptRecordError("the entry of another revision stands there.")


def _usage_row(database: bytes, key: bytes, value: bytes, format: int) -> None:
    if key.startswith(b"\0"):
        _sealed(database, key, value, format)
        return
    usage, of_version = _usage(key, value, format), version_of_key(key)
    found = (usage.name, usage.version) if of_version else usage.name
    if found != (of_version or key.decode()):
        raise CorruptRecordError(f"the usage of {usage.name} stands there.")


def _usage(key: bytes, value: bytes, format: int) -> Any:
    codec = row_codec if version_of_key(key) is None else version_codec
    return codec.load(value, key, format).usage


_LOOKS: Final[dict[bytes, Callable[[bytes, bytes, bytes, int], None]]] = {
    layout.META: _meta,
    layout.MODULES: _module,
    layout.HISTORY: _past,
    layout.SEQUENCES: _row_of_names,
    layout.ALIASES: _alias,
    layout.LAYERS: _layer,
    layout.CHANGES: _change,
    layout.USAGE: _usage_row,
    layout.LABELS: _label,
    layout.POLICIES: _policy,
}
