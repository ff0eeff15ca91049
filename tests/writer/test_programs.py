"""Publishing: whole or not at all, stored once, collected with the last version that needs it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import (
    ConflictError,
    InvalidModuleError,
    InvalidProgramError,
    ModuleInfo,
    Registry,
    RegistryWriter,
    UpgradeRequiredError,
)
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.program_document import MAX_PROGRAM_BYTES, digest_of
from dspy_registry.registry_store.program_rows import PIECE_BYTES, cut, load_program, rows_of, stored_digests
from dspy_registry.registry_store.sharing import attach, detach
from dspy_registry.writer.failpoints import NAMES
from dspy_registry.writer.repair.repair import repair
from dspy_registry.writer.restore import restore
from dspy_registry.writer.rollback import read_versions, roll_back
from dspy_registry.writer.upgrade import upgrade
from tests.conftest import violations
from tests.registry_store.test_release_fixtures import RELEASE
from tests.support.compiled_programs import NAME, plain_document, publication
from tests.support.processes import child, say
from tests.support.selection import each


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as opened:
        yield opened


def stored(folder: Path) -> dict[bytes, bytes]:
    """Every document, by digest."""
    environment = attach(folder)
    try:
        with environment.reading() as txn:
            return {
                digest: load_program(txn, environment.dbs, digest) for digest in stored_digests(txn, environment.dbs)
            }
    finally:
        detach(environment)


def program_of(folder: Path, name: str = NAME) -> bytes:
    with Registry(folder) as registry:
        return registry.describe(name).provenance.program


def publish(writer: RegistryWriter, document: bytes, **given: object) -> int:
    return writer.publish_program(publication(document, **given), document).version


def test_i33_a_program_is_stored_once_and_comes_back_byte_for_byte(
    writer: RegistryWriter, registry_folder: Path
) -> None:
    documents = [plain_document("a"), plain_document("b", PIECE_BYTES * 3), plain_document("c", PIECE_BYTES)]
    for number, document in enumerate(documents):
        publish(writer, document, name=f"acme.M{number}")
        publish(writer, document, name=f"acme.Twin{number}")
    assert stored(registry_folder) == {digest_of(document): document for document in documents}


def test_a_first_publication_is_in_force_and_needs_no_record(writer: RegistryWriter, registry_folder: Path) -> None:
    assert publish(writer, plain_document()) == 1
    with Registry(registry_folder) as registry:
        assert registry.get_module(NAME) == ModuleInfo(NAME)


def test_a_program_that_is_not_in_force_changes_no_answer(writer: RegistryWriter, registry_folder: Path) -> None:
    info = ModuleInfo(NAME, capabilities=("qa",), estimated_duration=7)
    writer.register_module(info)
    candidate = plain_document("candidate")
    version = publish(writer, candidate, label="candidate")
    with Registry(registry_folder) as registry:
        assert registry.get_module(NAME) == info
        assert registry.describe(NAME).provenance.program == b""
        assert registry.resolve(f"{NAME}@candidate").version == version
        assert registry.describe(f"{NAME}@candidate").provenance.program == digest_of(candidate)
    assert publish(writer, candidate, label="candidate") == version  # the same again: nothing new
    assert violations(registry_folder) == []


def test_a_program_in_force_is_a_version_and_a_later_record_keeps_it(
    writer: RegistryWriter, registry_folder: Path
) -> None:
    writer.register_module(ModuleInfo(NAME))
    document = plain_document()
    assert publish(writer, document, is_in_force=True) == 2
    writer.register_module(ModuleInfo(NAME, estimated_duration=5))
    assert program_of(registry_folder) == digest_of(document)


def test_i33_a_state_goes_with_the_last_version_that_names_it(writer: RegistryWriter, registry_folder: Path) -> None:
    shared, alone = plain_document("shared"), plain_document("alone")
    publish(writer, shared, is_in_force=True, label="champion")
    publish(writer, alone, is_in_force=True)
    writer.publish_program(publication(b"", digest=b"", is_in_force=True), b"")
    for duration in range(layout.HISTORY_VERSIONS + 1):
        assert digest_of(alone) in stored(registry_folder) or duration >= layout.HISTORY_VERSIONS - 1
        writer.register_module(ModuleInfo(NAME, estimated_duration=duration))
    assert set(stored(registry_folder)) == {digest_of(shared)}  # the label keeps its version
    writer.remove_label(NAME, "champion")
    assert stored(registry_folder) == {}


def test_a_state_of_two_modules_stays_for_the_other(writer: RegistryWriter, registry_folder: Path) -> None:
    document = plain_document()
    publish(writer, document)
    publish(writer, document, name="acme.Other")
    for duration in range(layout.HISTORY_VERSIONS + 2):
        writer.publish_program(publication(b"", digest=b"", is_in_force=True), b"")
        writer.register_module(ModuleInfo(NAME, estimated_duration=duration))
    assert set(stored(registry_folder)) == {digest_of(document)}


def test_a_state_survives_unregistering_and_a_rollback_brings_it_back(
    writer: RegistryWriter, registry_folder: Path
) -> None:
    first, second = plain_document("1"), plain_document("2")
    publish(writer, first, is_in_force=True)
    publish(writer, second, is_in_force=True)
    done = roll_back(writer, read_versions(registry_folder, NAME))
    assert (done.restored, program_of(registry_folder)) == (1, digest_of(first))
    writer.unregister_module(NAME)
    assert roll_back(writer, read_versions(registry_folder, NAME)).restored == 3
    assert program_of(registry_folder) == digest_of(first)


def test_a_rollback_passes_by_what_was_never_in_force(writer: RegistryWriter, registry_folder: Path) -> None:
    first = publish(writer, plain_document("1"), is_in_force=True)
    publish(writer, plain_document("2"), is_in_force=True)
    publish(writer, plain_document("candidate"))
    assert roll_back(writer, read_versions(registry_folder, NAME)).restored == first


def test_a_renamed_module_takes_its_programs_along(writer: RegistryWriter, registry_folder: Path) -> None:
    document, candidate = plain_document(), plain_document("candidate")
    publish(writer, document, label="live")
    publish(writer, candidate, label="candidate")
    writer.rename_module(NAME, "acme.New")
    assert program_of(registry_folder, "acme.New@live") == digest_of(document)
    assert program_of(registry_folder, "acme.New@candidate") == digest_of(candidate)
    assert program_of(registry_folder, "acme.New") == digest_of(document)


def test_i33_a_refused_publication_leaves_nothing(writer: RegistryWriter, registry_folder: Path) -> None:
    writer.register_module(ModuleInfo(NAME))
    document = plain_document()
    for given, bytes_sent, error in (
        ({"digest": b"x" * 32}, document, InvalidProgramError),
        ({"digest": digest_of(b"{}")}, b"{}", InvalidProgramError),
        ({"digest": digest_of(b"not json")}, b"not json", InvalidProgramError),
        ({}, b"", InvalidProgramError),
        ({"name": "acme@x"}, document, InvalidModuleError),
        ({"info": ModuleInfo("acme.Else")}, document, InvalidModuleError),
        ({"label": "no label"}, document, ValueError),
        ({}, document + b" " * MAX_PROGRAM_BYTES, InvalidProgramError),
    ):
        with pytest.raises(error):
            writer.publish_program(publication(document, **given), bytes_sent)
    with pytest.raises(ConflictError):
        writer.publish_program(publication(document), document, expected_version=7)
    assert stored(registry_folder) == {}
    with Registry(registry_folder) as registry:
        assert registry.describe(NAME).provenance.version == 1


def test_the_largest_program_is_stored(writer: RegistryWriter, registry_folder: Path) -> None:
    size = MAX_PROGRAM_BYTES - len(plain_document())
    document = plain_document("", size)
    assert len(document) == MAX_PROGRAM_BYTES
    publish(writer, document)
    assert stored(registry_folder) == {digest_of(document): document}


def test_backup_and_restore_keep_programs(writer: RegistryWriter, registry_folder: Path, tmp_path: Path) -> None:
    document = plain_document("kept", PIECE_BYTES)
    publish(writer, document, label="live")
    backup(tmp_path / "copy", registry_folder)
    assert stored(tmp_path / "copy") == {digest_of(document): document}
    restore(tmp_path / "copy", tmp_path / "restored")
    assert stored(tmp_path / "restored") == {digest_of(document): document}
    assert violations(tmp_path / "restored") == []


def test_format_1_names_the_upgrade_and_takes_programs_after_it(registry_folder: Path) -> None:
    shutil.copytree(RELEASE / "full", registry_folder)
    document = plain_document()
    with RegistryWriter(registry_folder) as writer, pytest.raises(UpgradeRequiredError):
        publish(writer, document)
    upgrade(registry_folder)
    with RegistryWriter(registry_folder) as writer:
        publish(writer, document)
    assert set(stored(registry_folder)) == {digest_of(document)}


@pytest.mark.parametrize("has_backup", [True, False])
def test_i33_a_repair_keeps_whole_programs_and_takes_lost_ones_from_a_backup(
    registry_folder: Path, tmp_path: Path, has_backup: bool
) -> None:
    whole, lost = plain_document("whole", PIECE_BYTES), plain_document("lost", PIECE_BYTES)
    with RegistryWriter(tmp_path / "damaged") as opened:
        publish(opened, whole, label="whole")
        publish(opened, lost, label="lost", is_in_force=True)
        publish(opened, lost, name="acme.Other")
    backup(tmp_path / "copy", tmp_path / "damaged")
    lose(tmp_path / "damaged", 36, digest_of(lost))
    done = repair(tmp_path / "damaged", registry_folder, backups=tmp_path / "copy" if has_backup else None)
    assert set(stored(registry_folder)) == {digest_of(whole), *([digest_of(lost)] if has_backup else [])}
    assert program_of(registry_folder, f"{NAME}@lost") == (digest_of(lost) if has_backup else b"")
    assert program_of(registry_folder, f"{NAME}@whole") == digest_of(whole)
    assert any(each.where.startswith("programs/") for each in done.lost) == (not has_backup)


def publish_once(folder: str, size: int) -> None:
    with RegistryWriter(folder) as opened:
        say("ready")
        say(publish(opened, plain_document("killed", size), label="live"))


@pytest.mark.parametrize("failpoint", each(2, NAMES))
def test_i33_a_writer_killed_while_a_state_is_written_leaves_all_of_it_or_nothing(
    registry_folder: Path, failpoint: str
) -> None:
    with RegistryWriter(registry_folder) as opened:
        kept = publish(opened, plain_document("kept"), label="live")
    document = plain_document("killed", PIECE_BYTES * 20)
    with child(
        __name__, "publish_once", registry_folder, PIECE_BYTES * 20, DSPY_REGISTRY_FAILPOINTS=f"{failpoint}=kill"
    ) as writing:
        assert writing.heard() == ["ready"]
        assert writing.wait() == -signal.SIGKILL
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry:
        found = registry.resolve(f"{NAME}@live").version
    whole = {digest_of(document)} if found != kept else set()
    assert set(stored(registry_folder)) == {digest_of(plain_document("kept")), *whole}
    assert (found != kept) == (failpoint in ("before_even_word", "before_acknowledgement"))


def lose(folder: Path, key_length: int, digest: bytes = b"") -> None:
    """Delete the last row of `programs`, of this document, whose key is at least this long."""
    environment = attach(folder, writable=True)
    try:
        with environment.writing(environment.dbs.programs) as txn:
            keys = [
                key
                for key, _ in txn.cursor(environment.dbs.programs)
                if len(key) >= key_length and key.startswith(digest)
            ]
            txn.delete(keys[-1])
    finally:
        detach(environment)


@pytest.mark.parametrize(("key_length", "words"), [(36, "is missing"), (0, "is missing")])
def test_i33_check_finds_a_missing_piece_and_publishing_again_mends_it(
    registry_folder: Path, key_length: int, words: str
) -> None:
    document = plain_document("x", PIECE_BYTES * 2)
    with RegistryWriter(registry_folder) as writer:
        publish(writer, document)
    lose(registry_folder, key_length)
    assert any(words in found for found in violations(registry_folder))
    with RegistryWriter(registry_folder) as writer:
        publish(writer, document)
    assert stored(registry_folder) == {digest_of(document): document}


def test_i33_check_finds_a_program_that_is_gone_and_one_that_nobody_names(registry_folder: Path) -> None:
    document = plain_document()
    with RegistryWriter(registry_folder) as writer:
        publish(writer, document)
    lose(registry_folder, 36)
    lose(registry_folder, 32)
    assert any("not stored" in found for found in violations(registry_folder))
    environment = attach(registry_folder, writable=True)
    try:
        with environment.writing(environment.dbs.programs) as txn:
            for digest in (digest_of(document), digest_of(b"{}")):
                for key, row in rows_of(digest, cut(document), environment.dbs.format).items():
                    txn.put(key, row)
    finally:
        detach(environment)
    assert any("no kept version names it" in found for found in violations(registry_folder))
    with RegistryWriter(registry_folder) as writer:
        writer.register_module(ModuleInfo(NAME, estimated_duration=3))  # any change of a module collects it
    assert set(stored(registry_folder)) == {digest_of(document)}
