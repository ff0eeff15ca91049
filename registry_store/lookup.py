"""Look-ups inside one transaction: a record by its name, and a name by what was asked. Readers and writer use them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice

import msgspec

from dspy_registry.registry_store import layout, selection
from dspy_registry.registry_store.changes import State, alias_codec, implications_codec, state_codec
from dspy_registry.registry_store.codec import INTACT, corrupt, crc32, decode_info, misplaced, open_record
from dspy_registry.registry_store.errors import AmbiguousNameError, UnknownModuleError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.labels import Label, labels_of
from dspy_registry.registry_store.layers import Layer, layer_codec
from dspy_registry.registry_store.names import DSPY_PREFIX, last_part, short_term, snake_case
from dspy_registry.registry_store.order import load_names
from dspy_registry.registry_store.postings import BitMap, load_posting, stored_blocks
from dspy_registry.registry_store.records import ModuleInfo, StoredModule
from dspy_registry.registry_store.scan import items_from, items_with_prefix
from dspy_registry.registry_store.selection import Selection, load_version, split
from dspy_registry.registry_store.vocabulary import Vocabulary

_CANDIDATES_SHOWN = 8
_CANDIDATES_EXAMINED = 10_000
_NEIGHBOURS = 200
_MUCH_FARTHER = 0.15  # of the likeness of two names, which is 1 of equal ones


def load_state(txn: Transaction, dbs: Databases) -> State:
    """The registry's head. Raises CorruptRecordError."""
    state: State = state_codec.load(txn.get(layout.META_STATE, None, dbs.meta), layout.META_STATE, dbs.format)
    return state


def count_modules(txn: Transaction, dbs: Databases) -> int:
    """How many modules are registered."""
    entries: int = txn.stat(dbs.modules)["entries"]
    return entries


def load_layers(txn: Transaction, dbs: Databases, name: str) -> dict[str, Layer]:
    """What sources other than clients declare of the module of this full name, by source. Raises CorruptRecordError."""
    rows = items_with_prefix(txn, dbs.layers, layout.layer_key(name, ""))
    layers: list[Layer] = [layer_codec.load(value, key, dbs.format) for key, value in rows]
    return {layer.source: layer for layer in layers}


def load_vocabulary(txn: Transaction, dbs: Databases) -> Vocabulary:
    """The vocabulary of all sources together. Raises CorruptRecordError."""
    return vocabulary_of(txn.get(layout.META_VOCABULARY, None, dbs.meta), dbs.format)


@lru_cache(maxsize=4)
def vocabulary_of(stored: bytes | None, format: int) -> Vocabulary:
    """The vocabulary of all sources in these bytes. Cached: nearly every commit needs the same one."""
    return Vocabulary.combined(implications_codec.load(stored, layout.META_VOCABULARY, format))


def load_info(txn: Transaction, dbs: Databases, name: str) -> ModuleInfo | None:
    """The module of this full name. None: there is none. Raises CorruptRecordError."""
    value = txn.get(name.encode(), None, dbs.modules) if name else None
    return None if value is None else info_of(value, name)


def info_of(value: bytes, name: str) -> ModuleInfo:
    """The module in the bytes of its record. Raises CorruptRecordError, for another module's record too."""
    if crc32(value) != INTACT:
        raise corrupt(name)
    try:
        info = decode_info(value).info
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise corrupt(name, error) from error
    if info.name != name:
        raise misplaced(name, info.name)
    return info


def find_info(txn: Transaction, dbs: Databases, asked: str) -> ModuleInfo | None:
    """The module of a full name, an alias or a short name, and of the version after an @. None: there is no such name.

    Raises AmbiguousNameError, UnknownVersionError, UnknownLabelError, CorruptRecordError.
    """
    info = load_info(txn, dbs, asked) if is_askable(asked) else None
    if info is not None:
        return info
    found = resolve_selector(txn, dbs, asked)
    if found is None:
        return None
    return _selected(txn, dbs, *found).info if found[1] else load_info(txn, dbs, found[0])


def load_stored(txn: Transaction, dbs: Databases, asked: str) -> StoredModule:
    """The module with its provenance. Raises UnknownModuleError, and as `find_info`."""
    found = resolve_selector(txn, dbs, asked)
    if found is None:
        raise unknown(txn, dbs, asked)
    return _selected(txn, dbs, *found)


def _selected(txn: Transaction, dbs: Databases, name: str, selector: str) -> StoredModule:
    if not selector:
        return open_record(txn.get(name.encode(), None, dbs.modules), name)
    return load_version(txn, dbs, name, selection.select(txn, dbs, name, selector).choose(None).version)


def select(txn: Transaction, dbs: Databases, asked: str) -> Selection:
    """What was asked, resolved as far as it can be without a key. Raises as `load_stored`."""
    found = resolve_selector(txn, dbs, asked)
    if found is None:
        raise unknown(txn, dbs, asked)
    return selection.select(txn, dbs, *found)


def load_labels(txn: Transaction, dbs: Databases, asked: str) -> dict[str, Label]:
    """The labels of a full name, an alias or a short name. Raises UnknownModuleError, AmbiguousNameError."""
    name = resolve(txn, dbs, asked)
    if name is None:
        raise unknown(txn, dbs, asked)
    return labels_of(txn, dbs, name)


def resolve_selector(txn: Transaction, dbs: Databases, asked: str) -> tuple[str, str] | None:
    """(full name, selector) of what was asked; the selector is what follows the @, "" where that is part of the name.

    None: there is no such name. Raises AmbiguousNameError.
    """
    name = resolve(txn, dbs, asked)
    if name is not None:
        return name, ""
    part, selector = split(asked)
    name = resolve(txn, dbs, part) if selector else None
    return None if name is None else (name, selector)


def resolve(txn: Transaction, dbs: Databases, asked: str) -> str | None:
    """The full name of the module that was asked for. None: there is none.

    A full name comes first, then an alias, then the last dotted part, then its snake_case. A short name of several
    modules means the one directly in `dspy.`; without such a one AmbiguousNameError lists them.
    """
    if not is_askable(asked):
        return None
    key = asked.encode()
    if txn.get(key, None, dbs.modules) is not None:
        return asked
    alias = txn.get(key, None, dbs.aliases)
    if alias is not None:
        return str(alias_codec.load(alias, key, dbs.format).name)
    return _resolve_short(txn, dbs, asked)


def is_askable(asked: str) -> bool:
    """Whether a string can be a key at all: LMDB refuses empty and very long ones."""
    return 0 < len(asked) <= 255 and (asked.isascii() or _encodes(asked))


def _encodes(asked: str) -> bool:
    try:
        return len(asked.encode()) <= 255
    except UnicodeEncodeError:
        return False


def _resolve_short(txn: Transaction, dbs: Databases, asked: str) -> str | None:
    if "." in asked:  # short names have one part: `lookup_keys` lists only those as changed by a change
        return None
    word = snake_case(asked)
    by_last_part = DSPY_PREFIX + asked
    if txn.get(by_last_part.encode(), None, dbs.modules) is not None:
        return by_last_part
    blocks = stored_blocks(txn, dbs)
    sequences = load_posting(txn, dbs, short_term(word), blocks)
    if not sequences:
        return None
    candidates = [name for name in _names(txn, dbs, sequences) if snake_case(last_part(name)) == word]
    same_part = [name for name in candidates if last_part(name) == asked]
    if same_part:
        return _the_one(asked, same_part)
    if asked != word or not candidates:
        return None
    at_home = _names(txn, dbs, load_posting(txn, dbs, f"home:{word}", blocks))
    return _the_one(asked, at_home if len(at_home) == 1 else candidates)


def _names(txn: Transaction, dbs: Databases, sequences: BitMap) -> tuple[str, ...]:
    return load_names(txn, dbs, sequences[:_CANDIDATES_EXAMINED])


def _the_one(asked: str, candidates: Sequence[str]) -> str:
    if len(candidates) == 1:
        return candidates[0]
    raise AmbiguousNameError(asked, candidates[:_CANDIDATES_SHOWN])


def unknown(txn: Transaction, dbs: Databases, asked: object) -> UnknownModuleError:
    """The error for a missing module, with the closest names among its neighbours in key order and those in `dspy.`."""
    if not isinstance(asked, str) or not is_askable(asked):
        return UnknownModuleError(str(asked))
    part = split(asked)[0] or asked
    known = dict.fromkeys((*_names_from(txn, dbs, part), *_names_from(txn, dbs, DSPY_PREFIX)))
    forms = {form: name for name in known for form in (last_part(name).lower(), name.lower())}
    return UnknownModuleError(asked, tuple(dict.fromkeys(forms[form] for form in _close(part.lower(), forms)))[:3])


def _close(part: str, forms: Iterable[str]) -> list[str]:
    """The nearest forms, best first. What is much farther than the best one is not what was meant."""
    from difflib import SequenceMatcher, get_close_matches  # readers seldom need it

    found = get_close_matches(part, forms, n=6, cutoff=0.6)
    near = {form: SequenceMatcher(None, form, part).ratio() for form in found}
    return [form for form in found if near[form] > near[found[0]] - _MUCH_FARTHER]


def _names_from(txn: Transaction, dbs: Databases, start: str) -> Iterator[str]:
    """Names around a place in key order."""
    rows = items_from(txn, dbs.modules, start[: max(1, len(start) // 2)].encode())
    return (key.decode("utf-8", "replace") for key, _ in islice(rows, _NEIGHBOURS))
