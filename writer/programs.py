"""Publishing a program: a version of a module that names a stored document, in force or beside the one in force.

What is in force is always a module's newest version. So a program that is not to be in force takes two versions, in one
commit: its own, and after it the one in force again, under the next number and with its statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.errors import (
    ConflictError,
    CorruptRecordError,
    InvalidModuleError,
    InvalidProgramError,
)
from dspy_registry.registry_store.labels import LabelUpdate
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.layout import versioned_key
from dspy_registry.registry_store.program_document import decode_document, digest_of, refuse_size
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.usage_rows import VersionRow, version_codec
from dspy_registry.registry_store.validation import check_expected_version, name_problems, validate_encoded
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry
from dspy_registry.writer.labels import checked, set_labels


class Publication(msgspec.Struct, frozen=True, array_like=True):
    """What is to be published as a version of the module of this full name.

    `digest` is the SHA-256 of the document; empty: the version has no program. `info` None: the record in force, or for
    a module that is not registered one with nothing but its name. `label` is set to the version; empty: no label.
    """

    name: str
    digest: bytes
    info: ModuleInfo | None = None
    label: str = ""
    is_in_force: bool = False


class Published(msgspec.Struct, frozen=True):
    """The result of a publication: `version` of the module has the program, and is visible in `revision`.

    `digest` is the SHA-256 of the program's document, in hexadecimal.
    """

    revision: int
    name: str
    version: int
    digest: str


def check_publication(publication: Publication, size: int, expected_version: int | None) -> None:
    """Raises what is wrong with a publication by itself. `size` is that of its document in bytes."""
    problems = name_problems(publication.name)
    if problems:
        raise InvalidModuleError(repr(publication.name), problems)
    check_expected_version(expected_version)
    if publication.info is not None:
        if publication.info.name != publication.name:
            raise InvalidModuleError(repr(publication.name), (f"info.name: is {publication.info.name!r}",))
        validate_encoded(publication.info)
    refuse_size(publication.name, size)
    if publication.label:
        checked((LabelUpdate(publication.name, publication.label, 1),))


def publish(
    draft: Draft,
    publication: Publication,
    pieces: Sequence[bytes],
    expected_version: int | None = None,
    *,
    is_clients: bool = False,
) -> int:
    """Stage a publication. Returns the version that has the program.

    No `pieces`: the document is stored already. `expected_version` must be in force; 0: none; None: any. A version that
    is kept and equal is taken instead of a new one. `is_clients`: the module becomes a client's, also one that a
    manifest declares. Raises UpgradeRequiredError, InvalidModuleError, InvalidProgramError, ConflictError.
    """
    draft.catalog.dbs.need_format_2("programs")
    check_publication(publication, sum(map(len, pieces)), expected_version)
    name, current = publication.name, draft.module(publication.name)
    version = current.version if current else 0
    if expected_version is not None and expected_version != version:
        raise ConflictError(name, expected_version, version)
    _stage_document(draft, publication, pieces)
    source = CLIENT if current is None or is_clients or publication.info is not None else current.source
    info, encoded = validate_encoded(publication.info or (current.info if current else ModuleInfo(name)))
    if current is None or publication.is_in_force:
        published = draft.put_version(info, source, publication.digest).version
    else:
        if is_clients:
            current = msgspec.structs.replace(current, source=CLIENT)
        published = _equal_version(draft, publication, encoded, is_clients) or _beside(
            draft, current, info, source, publication.digest
        )
    if publication.label:
        set_labels(draft, (LabelUpdate(name, publication.label, published),))
    return published


def _beside(draft: Draft, current: Entry, info: ModuleInfo, source: str, program: bytes) -> int:
    """The version that has the program. The one in force stays what it was."""
    published = draft.put_version(info, source, program)
    back = draft.put_version(current.info, current.source, current.program)
    carry_statistics(draft, info.name, current.version, back.version)
    return published.version


def has_taken_effect(draft: Draft, publication: Publication, expected_version: int | None) -> bool:
    """Whether the version after the expected one is in force, and is what was to be published."""
    current = draft.module(publication.name)
    if current is None or expected_version is None:
        return False
    is_next = current.version == expected_version + 1
    is_equal = publication.info is None or current.encoded == encode(publication.info)
    return is_next and is_equal and current.program == publication.digest


def _stage_document(draft: Draft, publication: Publication, pieces: Sequence[bytes]) -> None:
    digest = publication.digest
    if not digest:
        return
    if not pieces:
        if not draft.has_program(digest):
            raise InvalidProgramError(publication.name, ("no program of this digest is stored",))
        return
    document = b"".join(pieces)
    if digest_of(document) != digest:
        raise InvalidProgramError(publication.name, ("its bytes do not have the digest that was sent with them",))
    try:
        decode_document(document)
    except CorruptRecordError as error:
        raise InvalidProgramError(publication.name, (error.message.rstrip("."),)) from error
    if not draft.catalog.has_whole_program(digest):
        draft.programs[digest] = tuple(pieces)


def _equal_version(draft: Draft, publication: Publication, encoded: bytes, is_clusters: bool) -> int | None:
    """The newest kept version with this record and this program. None: there is none.

    `is_clusters`: one that this host counted itself is none.
    """
    name, program = publication.name, publication.digest
    current = draft.module(name)
    for entry in (current, *reversed(current.past)) if current else ():
        is_equal = (entry.encoded, entry.program) == (encoded, program)
        if is_equal and (entry.source == CLIENT or not is_clusters):
            return entry.version
    for stored in draft.catalog.past_versions(name):
        kept = stored.provenance
        is_equal = kept.program == program and encode(stored.info) == encoded
        if is_equal and (kept.global_revision or not is_clusters):
            return kept.version
    return None


def carry_statistics(draft: Draft, name: str, old: int, new: int) -> None:
    """The version in force got another number, and is what it was."""
    row = draft.usage_row(versioned_key(name, old))
    if row is not None:
        format, key = draft.catalog.format, versioned_key(name, new)
        former: VersionRow = version_codec.load(row, versioned_key(name, old), format)
        usage = msgspec.structs.replace(former.usage, version=new)
        draft.usage[key] = version_codec.dump(msgspec.structs.replace(former, usage=usage), key, format)
