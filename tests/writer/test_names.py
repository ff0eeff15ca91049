"""Names: new ones have parts that can be asked for, old ones stay readable, and whatever was accepted is sound."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_registry import InvalidModuleError, ModuleInfo, Registry, RegistryError, RegistryWriter, UnknownModuleError
from dspy_registry.registry_store import validation
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.check.old_names import OldNames, old_names
from dspy_registry.writer.restore import restore
from tests.conftest import violations

BAD = ("acme.", ".acme", "a..b", ".", "a@3", "@", " a", "a ", "\u2003a", "a.b\u00a0")
OLD = ("acme.", ".acme", "a@3", " a", "Aa" * 127)


@pytest.fixture
def old(registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with names that release 0.1.0 took."""
    with RegistryWriter(registry_folder) as writer, monkeypatch.context() as patched:
        patched.setattr(validation, "_has_wrong_parts", lambda name: False)
        writer.register_modules([ModuleInfo(name, estimated_duration=7) for name in OLD])
        writer.set_alias("other.", "acme.")
    return registry_folder


@pytest.mark.parametrize("name", BAD)
def test_a_new_name_has_no_empty_part_no_at_and_no_outer_white_space(name: str, registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        for refused in (
            lambda: writer.register_module(ModuleInfo(name)),
            lambda: writer.set_alias(name, "dspy.Predict"),
            lambda: writer.rename_module("dspy.Predict", name),
        ):
            with pytest.raises(InvalidModuleError, match="name: "):
                refused()
        writer.register_module(ModuleInfo("a.b c.ü-1"))


def test_old_names_are_read_listed_and_sound(old: Path) -> None:
    with Registry(old) as registry:
        assert [registry[name].estimated_duration for name in OLD] == [7] * len(OLD)
        assert registry.get_module("other.").name == "acme."
    assert violations(old) == []
    assert old_names(old) == OldNames((" a", ".acme", "a@3", "acme."), ("other.",))


def test_old_names_are_renamed_and_removed(old: Path) -> None:
    with RegistryWriter(old) as writer, Registry(old) as registry:
        writer.rename_module("acme.", "acme.Old")
        assert registry["acme.Old"].estimated_duration == 7
        assert registry.get_module("other.").name == "acme.Old"
        assert "acme." not in registry
        assert [kept.info.name for kept in registry.history("acme.")] == ["acme."]
        writer.remove_alias("other.")
        for name in (" a", ".acme", "a@3"):
            writer.unregister_module(name)
    assert (violations(old), old_names(old)) == ([], OldNames())


def test_a_rename_is_refused_whole(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(ModuleInfo("acme.A"))
        with pytest.raises(UnknownModuleError):
            writer.rename_module("acme.None", "acme.B")
        for old, new in (("acme.A", "dspy.Predict"), ("dspy.Predict", "acme.B"), ("acme.A", "a@b")):
            with pytest.raises(InvalidModuleError):
                writer.rename_module(old, new)
        assert "acme.A" in registry


names = st.text(max_size=6) | st.text("aAbB._@ \u0130\u00df", min_size=1, max_size=300)
words = st.text(max_size=70)


@settings(max_examples=10, deadline=None)  # a restoration costs more than the names in it
@given(st.lists(st.tuples(names, words, words, names), max_size=12))
def test_i27_whatever_was_accepted_is_sound_and_a_backup_restores_it(
    given_modules: list[tuple[str, str, str, str]],
) -> None:
    with TemporaryDirectory() as place:
        folder, copy, back = (Path(place, name) for name in ("registry", "copy", "back"))
        with RegistryWriter(folder) as writer:
            for name, category, pool, alias in given_modules:
                for change in (
                    lambda: writer.register_module(ModuleInfo(name, category=category, pool_type=pool)),  # noqa: B023
                    lambda: writer.set_alias(alias, name),  # noqa: B023
                    lambda: writer.rename_module(name, f"{alias}x"),  # noqa: B023
                    lambda: writer.unregister_module(name) if len(alias) % 2 else 0,  # noqa: B023
                ):
                    try:
                        change()
                    except RegistryError:
                        continue
        assert violations(folder) == []
        backup(copy, folder)
        restore(copy, back)
        with Registry(folder) as registry, Registry(back) as restored:
            assert dict(restored) == dict(registry)
        assert violations(back) == []
