"""From a tree of manifests to the registry: layers, precedence, differences only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dspy_registry import ModuleInfo, Registry, RegistryWriter, Requirements, VocabularyError
from dspy_registry.writer.discovery.report import DiscoveryReport
from dspy_registry.writer.manifests.declarations import unreadable
from dspy_registry.writer.manifests.parse import load
from dspy_registry.writer.manifests.stage import Loaded, stage_tree
from dspy_registry.writer.manifests.text import read_text
from dspy_registry.writer.manifests.tree import Tree
from dspy_registry.writer.manifests.validate import validate_document
from tests.conftest import violations


def tree(unknown: tuple[str, ...] = (), **texts: str) -> Tree:
    files = {}
    for file, text in sorted(texts.items()):
        name = f"{file}.yaml"
        files[name] = (
            unreadable(name, "broken") if text == "broken" else validate_document(name, read_text(text, ".yaml"))
        )
    return Tree(files, unknown)


class Subject:
    """A registry with its writer and a reader."""

    def __init__(self, path: Path) -> None:
        self.writer = RegistryWriter(path)
        self.reader = Registry(path)

    def stage(self, staged: Tree) -> Loaded:
        results = []
        self.writer.store.committer.commit(lambda draft: results.append(stage_tree(draft, staged)))
        return results[-1]

    def load(self, unknown: tuple[str, ...] = (), **texts: str) -> Loaded:
        return self.stage(tree(unknown, **texts))

    def discover(self, *infos: ModuleInfo) -> None:
        found = tuple(msgspec.structs.replace(info, metadata={"discovered_from": "acme"}) for info in infos)
        self.writer.apply_discovery(DiscoveryReport(modules=found, probed=("acme",), looked_through=("acme",)))

    def source(self, name: str) -> str:
        return self.reader.describe(name).provenance.source


@pytest.fixture
def subject(registry_folder: Path) -> Iterator[Subject]:
    subject = Subject(registry_folder)
    with subject.writer, subject.reader:
        yield subject


# Precedence


def test_a_manifest_declares_only_what_it_names(subject: Subject) -> None:
    before = subject.reader["dspy.ChainOfThought"]
    subject.load(a="modules: [{name: dspy.ChainOfThought, requirements: {memory: high, vram: 8}}]")
    after = subject.reader["dspy.ChainOfThought"]
    assert after.requirements == Requirements("high", "medium", gpu=False, extra={"vram": 8})
    assert (after.capabilities, after.estimated_duration) == (before.capabilities, before.estimated_duration)
    assert subject.source("dspy.ChainOfThought") == "manifest:a.yaml"
    subject.load()
    assert subject.reader["dspy.ChainOfThought"] == before
    assert subject.source("dspy.ChainOfThought") == "core"


def test_client_before_manifest_before_core_before_defaults_before_discovered(subject: Subject) -> None:
    """Each source gives a duration of its own; then they are taken away from the top."""
    name = "dspy.ChainOfThought"
    subject.discover(ModuleInfo(name, estimated_duration=1, category="found", pool_type="found"))
    subject.load(
        a=f"modules: [{{name: {name}, estimated_duration: 2}}]\ndefaults: [{{match: '{name}', pool_type: given, "
        "estimated_duration: 3, native_available: true}]"
    )
    subject.writer.register_module(ModuleInfo(name, estimated_duration=5))
    assert subject.reader[name] == ModuleInfo(name, estimated_duration=5)
    subject.writer.unregister_module(name)
    subject.discover(ModuleInfo(name, estimated_duration=1, category="found", examples=("found",)))
    subject.load(a=f"defaults: [{{match: '{name}', estimated_duration: 3, native_available: true}}]")
    found = subject.reader[name]
    assert (found.estimated_duration, found.category, found.native_available) == (3, "found", True)
    assert subject.source(name) == "discovered"
    subject.load(a=f"modules: [{{name: {name}, estimated_duration: 2}}]")
    found = subject.reader[name]
    assert (found.estimated_duration, found.category, found.native_available) == (2, "found", False)


def test_each_field_is_explained_by_the_source_that_gave_it(subject: Subject) -> None:
    name = "dspy.ChainOfThought"
    subject.discover(ModuleInfo(name, category="found", native_available=True))
    subject.load(
        **{
            "sub/a": f"modules: [{{name: {name}, estimated_duration: 2, requirements: {{memory: high, vram: 8}}}}]",
            "b": "defaults: [{match: 'dspy.*', native_available: false, metadata: {pool: x}}]",
        }
    )
    with subject.reader.snapshot() as snapshot:
        given = snapshot.explain(name)
    assert given["estimated_duration"] == given["requirements.vram"] == "manifest:sub/a.yaml"
    assert given["category"] == given["requirements.compute"] == "core"
    assert given["metadata.pool"] == "defaults:b.yaml"
    assert given["metadata.discovered_from"] == "discovered"
    subject.writer.register_module(ModuleInfo(name))
    with subject.reader.snapshot() as snapshot:
        assert set(snapshot.explain(name).values()) == {"client"}


def test_defaults_leave_what_core_declares(subject: Subject) -> None:
    subject.discover(ModuleInfo("dspy.Predict", estimated_duration=1, examples=("found",)))
    subject.load(a="defaults: [{match: 'dspy.*', estimated_duration: 3, examples: [given]}]")
    found = subject.reader["dspy.Predict"]
    assert (found.estimated_duration, found.examples) == (1000, ("given",))


# Defaults


def test_defaults_hold_for_what_is_discovered_before_and_after(subject: Subject) -> None:
    subject.discover(ModuleInfo("acme.BootstrapA"), ModuleInfo("acme.Other"))
    subject.load(a="defaults: [{match: 'acme.Bootstrap*', pool_type: optimizer, estimated_duration: 9}]")
    subject.discover(ModuleInfo("acme.BootstrapA"), ModuleInfo("acme.BootstrapB"), ModuleInfo("acme.Other"))
    pools = {name: subject.reader[name].pool_type for name in ("acme.BootstrapA", "acme.BootstrapB", "acme.Other")}
    assert pools == {"acme.BootstrapA": "optimizer", "acme.BootstrapB": "optimizer", "acme.Other": "general"}
    subject.load(a="defaults: [{match: 'acme.*B', pool_type: neural}]")
    pools = {name: subject.reader[name].pool_type for name in pools}
    assert pools == {"acme.BootstrapA": "general", "acme.BootstrapB": "neural", "acme.Other": "general"}
    assert subject.reader["acme.BootstrapB"].estimated_duration == 1000


def test_defaults_declare_no_module(subject: Subject) -> None:
    subject.load(a="defaults: [{match: 'acme.*', pool_type: neural}, {match: 'dspy.*', pool_type: neural}]")
    assert len(subject.reader) == 6
    assert subject.reader["dspy.Predict"].pool_type == "general"
    subject.discover(ModuleInfo("acme.A"))
    assert subject.reader["acme.A"].pool_type == "neural"
    subject.discover()
    assert "acme.A" not in subject.reader


def test_of_several_defaults_the_later_wins(subject: Subject) -> None:
    subject.discover(ModuleInfo("acme.A"))
    subject.load(
        a="defaults: [{match: '*', pool_type: a1, category: a1}, {match: 'acme.*', pool_type: a2}]",
        b="defaults: [{match: '*A', category: b, requirements: {gpu: true}}]",
    )
    found = subject.reader["acme.A"]
    assert (found.pool_type, found.category, found.requirements.gpu) == ("a2", "b", True)


# Files


def test_loading_the_same_again_changes_nothing(subject: Subject) -> None:
    texts = {
        "a": "modules: [{name: acme.A, metadata: {x: 1}}, {name: dspy.Predict, pool_type: fast}]\naliases: {a: acme.A}",
        "b": "implications: {tool_use: [reasoning]}\ndefaults: [{match: 'dspy.*', pool_type: x}]",
    }
    assert subject.load(**texts).errors == ()
    revision = subject.reader.revision
    subject.load(**texts)
    assert subject.reader.revision == revision
    assert subject.reader.find_by_capability("reasoning") == (
        "dspy.ChainOfThought",
        "dspy.ReAct",
        "dspy.ProgramOfThought",
    )


def test_one_turned_into_true_is_a_change(subject: Subject) -> None:
    subject.load(a="modules: [{name: acme.A, metadata: {x: 1}}]")
    subject.load(a="modules: [{name: acme.A, metadata: {x: true}}]")
    assert subject.reader["acme.A"].metadata["x"] is True
    subject.load(a="modules: [{name: acme.A, metadata: {x: true}, category: c}]")
    subject.load(a="modules: [{name: acme.A, metadata: {x: true}}]")
    assert subject.reader["acme.A"].metadata["x"] is True


def test_a_module_that_moves_to_another_file_keeps_its_place_and_version(subject: Subject) -> None:
    subject.load(a="modules: [{name: acme.A}, {name: acme.B}]\naliases: {short: acme.A}")
    subject.load(b="modules: [{name: acme.A}, {name: acme.B}]\naliases: {short: acme.A}")
    kept = subject.reader.describe("acme.A").provenance
    assert (kept.version, kept.source) == (1, "manifest:b.yaml")
    assert list(subject.reader)[-2:] == ["acme.A", "acme.B"]
    assert subject.reader.get_module("short").name == "acme.A"
    subject.load()
    assert len(subject.reader) == 6


def test_implications_may_turn_round_between_files(subject: Subject) -> None:
    subject.load(a="implications: {one: [two]}", b="modules: [{name: acme.A, capabilities: [one]}]")
    assert subject.reader.find_by_capability("two") == ("acme.A",)
    loaded = subject.load(b="modules: [{name: acme.A, capabilities: [one]}]\nimplications: {two: [one]}")
    assert loaded.errors == ()
    assert subject.reader.find_by_capability("two") == ()


def test_implications_of_a_renamed_file_stay_when_another_is_removed(subject: Subject) -> None:
    subject.load(a="implications: {one: [two]}")
    subject.load(b="implications: {one: [two]}")
    subject.load(b="implications: {one: [two]}", c="modules: [{name: acme.A, capabilities: [one]}]")
    assert subject.reader.find_by_capability("two") == ("acme.A",)
    subject.load(c="modules: [{name: acme.A, capabilities: [one]}]")
    assert subject.reader.find_by_capability("two") == ()


def test_a_cycle_with_a_clients_implications_is_the_files_error(subject: Subject) -> None:
    subject.writer.set_implications({"one": ("two",)})
    (error,) = subject.load(a="implications: {two: [one]}").errors
    assert (error.file, "two -> one" in error.message) == ("a.yaml", True)
    subject.load(a="implications: {two: [three]}")
    with pytest.raises(VocabularyError, match=r"three -> two -> three|two -> three -> two"):
        subject.writer.set_implications({"three": ("two",)})


def test_implications_that_are_too_many_together_are_the_error_of_the_file_that_adds_to_them(subject: Subject) -> None:
    def words(start: str, count: int) -> str:
        return "implications: {" + ", ".join(f"{start}{number}: [x]" for number in range(count)) + "}"

    loaded = subject.load(a=words("a", 600), b=words("b", 600), c=words("c", 400))
    (error,) = loaded.errors
    assert (error.file, error.field) == ("b.yaml", "implications")
    assert re.search("1201 .*1024", error.message)
    assert subject.load(a=words("a", 600), b=words("b", 20), c=words("c", 400)).errors == ()


def test_implications_that_reach_too_far_together_are_a_files_error(subject: Subject) -> None:
    chains = [", ".join(f"w{n}: [w{n + 1}]" for n in range(start, start + 130)) for start in (0, 130)]
    (error,) = subject.load(a=f"implications: {{{chains[0]}}}", b=f"implications: {{{chains[1]}}}").errors
    assert (error.file, error.field) == ("b.yaml", "implications")
    assert re.search("256 .*'w0', 'w1', 'w2', 'w3'", error.message)


def test_an_alias_too_many_is_an_error_with_its_place(subject: Subject) -> None:
    def aliases(count: int) -> str:
        return "aliases: {" + ", ".join(f"x{number}: dspy.Predict" for number in range(count)) + "}"

    (error,) = subject.load(a=aliases(65)).errors
    assert (error.file, error.field) == ("a.yaml", "aliases.x64")
    assert re.search(r"dspy\.Predict .*64", error.message)
    assert subject.load(a=aliases(64)).errors == ()


def test_a_held_file_keeps_everything_it_declared(subject: Subject) -> None:
    text = (
        "modules: [{name: acme.A, capabilities: [one]}]\naliases: {short: acme.A}\nimplications: {one: [two]}\n"
        "defaults: [{match: '*', pool_type: x}]"
    )
    subject.load(a=text)
    revision = subject.reader.revision
    loaded = subject.load(a="broken")
    assert (len(loaded.modules), loaded.retained) == (1, {"a.yaml"})
    assert subject.reader.revision == revision
    subject.discover(ModuleInfo("acme.B"))
    assert subject.reader["acme.B"].pool_type == "x"
    assert len(subject.load(("a.yaml",)).modules) == 1  # nor when it cannot be looked for
    assert subject.reader.get_module("short").name == "acme.A"
    subject.load()
    assert "acme.A" not in subject.reader
    assert subject.reader["acme.B"].pool_type == "general"


# What only the registry can know


def test_an_alias_of_nothing_holds_its_file_until_there_is_something(subject: Subject) -> None:
    texts = {"a": "modules: [{name: acme.A}]\naliases:\n  b: acme.B\n", "c": "modules: [{name: acme.C}]"}
    loaded = subject.load(**texts)
    (error,) = loaded.errors
    assert (error.file, error.line, error.field) == ("a.yaml", 3, "aliases.b")
    assert "'acme.B'" in error.message
    assert loaded.needs_registry
    assert "acme.A" not in subject.reader
    assert "acme.C" in subject.reader
    subject.writer.register_module(ModuleInfo("acme.B"))
    assert subject.load(**texts).errors == ()
    assert subject.reader.get_module("b").name == "acme.B"


def test_an_alias_goes_with_the_module_it_means(subject: Subject) -> None:
    subject.load(a="modules: [{name: acme.A}]", b="aliases: {short: acme.A}")
    loaded = subject.load(b="aliases: {short: acme.A}")
    assert [error.file for error in loaded.errors] == ["b.yaml"]
    assert subject.reader.get("short") is None
    assert "acme.A" not in subject.reader


def test_an_alias_cannot_be_a_registered_full_name(subject: Subject) -> None:
    loaded = subject.load(a="aliases:\n  dspy.ReAct: dspy.Predict\n")
    (error,) = loaded.errors
    assert (error.file, error.line, error.field) == ("a.yaml", 2, "aliases.dspy.ReAct")
    subject.writer.unregister_module("dspy.ReAct")
    assert subject.load(a="aliases:\n  dspy.ReAct: dspy.Predict\n").errors == ()
    assert subject.reader.get_module("dspy.ReAct").name == "dspy.Predict"


def test_a_clients_alias_wins(subject: Subject) -> None:
    subject.writer.set_alias("short", "dspy.Predict")
    assert subject.load(a="modules: [{name: acme.A}]\naliases: {short: acme.A}").errors == ()
    assert subject.reader.get_module("short").name == "dspy.Predict"
    subject.load()
    assert subject.reader.get_module("short").name == "dspy.Predict"


def test_a_record_too_large_is_the_error_of_its_file(subject: Subject) -> None:
    text = "modules: [{name: acme.A, metadata: {text: " + "x" * (1024 * 1024) + "}}, {name: acme.B}]"
    loaded = subject.load(a=text, b="modules: [{name: acme.C}]")
    (error,) = loaded.errors
    assert (error.file, error.field) == ("a.yaml", "modules[0]")
    assert (set(subject.reader) & {"acme.A", "acme.B", "acme.C"}, len(loaded.modules)) == ({"acme.C"}, 1)


def test_a_client_that_takes_a_module_over_keeps_it(subject: Subject) -> None:
    subject.load(a="modules: [{name: acme.A, category: one}]")
    subject.writer.register_module(ModuleInfo("acme.A", category="mine"))
    subject.load(a="modules: [{name: acme.A, category: two}]")
    subject.load()
    assert subject.reader["acme.A"].category == "mine"


# In general

entries = st.fixed_dictionaries(
    {"name": st.sampled_from(["acme.A", "acme.B", "dspy.Predict"])},
    optional={
        "category": st.sampled_from(["one", "two"]),
        "metadata": st.dictionaries(st.sampled_from("xy"), st.sampled_from([1, True, 1.0]), max_size=2),
    },
)
manifests = st.fixed_dictionaries(
    {},
    optional={
        "modules": st.lists(entries, max_size=2, unique_by=lambda entry: entry["name"]),
        "aliases": st.dictionaries(st.sampled_from(["s", "t"]), st.sampled_from(["acme.A", "dspy.ReAct"]), max_size=1),
        "implications": st.dictionaries(
            st.sampled_from(["one", "two"]), st.lists(st.sampled_from(["one", "two", "reasoning"]), max_size=1)
        ),
        "defaults": st.lists(
            st.fixed_dictionaries(
                {"match": st.sampled_from(["*", "acme.*", "found.B"])},
                optional={"pool_type": st.sampled_from(["p", "q"])},
            ),
            max_size=2,
        ),
    },
)
versions = st.dictionaries(st.sampled_from(["a", "b", "c"]), manifests, max_size=3)


def as_tree(version: dict[str, dict[str, object]]) -> Tree:
    files = {f"{file}.json": json.dumps(text).encode() for file, text in sorted(version.items())}
    return Tree({file: load(file, content, ".json") for file, content in files.items()})


def seen(subject: Subject) -> dict[str, object]:
    modules = {name: (info, subject.source(name)) for name, info in subject.reader.items()}
    aliases = {alias: getattr(subject.reader.get(alias), "name", None) for alias in ("s", "t")}
    reasoning = {word: sorted(subject.reader.find_by_capability(word)) for word in ("one", "two", "reasoning")}
    return {"modules": {name: repr(found) for name, found in modules.items()}, "aliases": aliases, "words": reasoning}


@settings(max_examples=40)
@given(st.lists(versions, min_size=1, max_size=4))
def test_what_is_in_force_depends_on_the_files_alone(
    tmp_path_factory: pytest.TempPathFactory, history: list[dict[str, dict[str, object]]]
) -> None:
    """When the last version is sound, a registry that saw them all holds the same as one that saw only it."""
    found = (ModuleInfo("found.A"), ModuleInfo("found.B", capabilities=("one",)))
    folder = tmp_path_factory.mktemp("registries")
    old, new = Subject(folder / "old"), Subject(folder / "new")
    with old.writer, old.reader, new.writer, new.reader:
        old.discover(*found)
        new.discover(*found)
        for version in history:
            loaded = old.stage(as_tree(version))
        assume(not loaded.errors)
        assert new.stage(as_tree(history[-1])).errors == ()
        assert seen(old) == seen(new)
        revision = old.reader.revision
        old.stage(as_tree(history[-1]))
        assert old.reader.revision == revision
    assert violations(folder / "old") == violations(folder / "new") == []
