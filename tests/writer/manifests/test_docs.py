"""docs/manifests.md: its examples are manifests, it names every key, and its limits are the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_registry.registry_store.layout import (
    MAX_CAPABILITIES,
    MAX_DURATION_MS,
    MAX_NAME_BYTES,
    MAX_RECORD_BYTES,
    MAX_TERM_BYTES,
)
from dspy_registry.registry_store.records import from_plain
from dspy_registry.writer.manifests.folder_scan import MAX_FILES, MAX_PATH_BYTES
from dspy_registry.writer.manifests.parse import MAX_FILE_BYTES
from dspy_registry.writer.manifests.schema import (
    DefaultManifest,
    LabelManifest,
    Manifest,
    ModuleManifest,
    PolicyManifest,
    RequirementsManifest,
    keys_of,
)
from dspy_registry.writer.manifests.text import MAX_DEPTH, read_text
from dspy_registry.writer.manifests.validate import validate_document
from dspy_registry.writer.manifests.yaml import MAX_NODES
from tests.test_readme import ROOT, Block, blocks

PAGE = ROOT / "docs" / "manifests.md"
EXAMPLES = [block for block in blocks(PAGE) if block.info in ("toml", "yaml", "json")]


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.info)
def test_examples_are_sound_manifests(block: Block) -> None:
    loaded = validate_document(block.where, read_text(block.code, f".{block.info}"))
    assert loaded.errors == ()


def test_toml_and_yaml_examples_say_the_same() -> None:
    toml, yaml, _ = (read_text(block.code, f".{block.info}").data for block in EXAMPLES)
    assert toml == yaml
    assert {key for module in toml["modules"] for key in module} == set(keys_of(ModuleManifest))


@pytest.mark.parametrize(
    "struct", [Manifest, ModuleManifest, DefaultManifest, LabelManifest, RequirementsManifest, PolicyManifest]
)
def test_every_key_is_described(struct: type) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [key for key in keys_of(struct) if f"`{key}`" not in text] == []


def test_every_default_is_the_real_one() -> None:
    bare = from_plain({"name": "a.B"})
    rows = dict(row for row in map(table_row, PAGE.read_text(encoding="utf-8").splitlines()) if row)
    assert rows["category"] == f"`{bare.category}`"
    assert rows["pool_type"] == f"`{bare.pool_type}`"
    assert rows["estimated_duration"] == str(bare.estimated_duration)
    assert rows["native_available"] == str(bare.native_available).lower()
    needs = bare.requirements
    assert rows["requirements"] == f"`{needs.memory}`, `{needs.compute}`, {str(needs.gpu).lower()}"


def table_row(line: str) -> tuple[str, str] | None:
    cells = [cell.strip() for cell in line.split("|")]
    return (cells[1].strip("`"), cells[3]) if len(cells) == 5 else None


def test_limits_are_the_real_ones() -> None:
    text = " ".join(Path(PAGE).read_text(encoding="utf-8").split())
    for stated in (
        f"at most {MAX_FILE_BYTES // 1024**2} MiB and {MAX_DEPTH} levels",
        f"{MAX_NODES} values",
        f"a folder {MAX_FILES} files",
        f"within the folder {MAX_PATH_BYTES} bytes",
        f"A module has at most {MAX_RECORD_BYTES // 1024**2} MiB",
        f"string of 1 to {MAX_NAME_BYTES} bytes",
        f"string of 1 to {MAX_TERM_BYTES} bytes",
        f"up to {MAX_CAPABILITIES} names",
        f"0 to {MAX_DURATION_MS} (30 days)",
    ):
        assert stated in text
