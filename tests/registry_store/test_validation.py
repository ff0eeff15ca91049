"""What may enter the registry, and that an error names all that is wrong with it."""

from __future__ import annotations

import enum
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry import InvalidModuleError, ModuleInfo, Provenance, Registry, RegistryWriter, Requirements
from dspy_registry.registry_store.codec import decode_info, encode, open_record, seal_record
from dspy_registry.registry_store.layout import (
    FORMAT_VERSION,
    MAX_CAPABILITIES,
    MAX_DURATION_MS,
    MAX_METADATA_DEPTH,
    MAX_NAME_BYTES,
    MAX_RECORD_BYTES,
    MAX_TERM_BYTES,
)
from dspy_registry.registry_store.names import attribute_terms, short_terms
from dspy_registry.registry_store.records import to_plain
from dspy_registry.registry_store.validation import validate_encoded, validate_module
from dspy_registry.registry_store.vocabulary import CORE_IMPLICATIONS, Vocabulary


class Word(str, enum.Enum):
    REASONING = "reasoning"
    LOW = "low"


class Text(str):
    __slots__ = ()


class Extended(ModuleInfo):
    more: int = 3


class ExtendedNeeds(Requirements):
    more: int = 3


def nested(depth: int) -> dict[str, Any]:
    """A mapping of this many levels, itself included."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"in": value}
    return value


def doubling(levels: int) -> list[Any]:
    """A few lists that stand for 2**levels values, as aliases in a YAML file do."""
    value: list[Any] = [0, 0]
    for _ in range(levels - 1):
        value = [value, value]
    return value


def deep_list() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def problems_of(**fields: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidModuleError) as caught:
        validate_module(ModuleInfo(**{"name": "a.B", **fields}))
    return caught.value.problems


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"name": "x"},
    {"name": "ü" * 127},
    {"name": "n" * MAX_NAME_BYTES},
    {"name": "with space and ‮"},
    {"category": "c" * MAX_TERM_BYTES},
    {"category": "Füllwort"},
    {"capabilities": tuple(f"c{i}" for i in range(MAX_CAPABILITIES))},
    {"capabilities": ("c" * MAX_TERM_BYTES, "a_1")},
    {"capabilities": ["a", "b"], "examples": ["one"]},
    {"capabilities": ("a", "a")},
    {"estimated_duration": 0},
    {"estimated_duration": MAX_DURATION_MS},
    {"metadata": nested(MAX_METADATA_DEPTH)},
    {"metadata": {"n": None, "f": 0.5, "i": -(2**63), "u": 2**64 - 1, "b": -0.0, "l": [True, {"ü": "ü"}]}},
    {"requirements": Requirements(memory="very_high", compute="high", gpu=True, extra={"vram_gb": 24})},
    {"examples": ("", "\n", "ü" * 1000)},
]

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("name empty", {"name": ""}, "name"),
    ("name too long", {"name": "n" * 256}, "name"),
    ("name too long in bytes", {"name": "ü" * 128}, "name"),
    ("name with a control character", {"name": "a\nb"}, "name"),
    ("name with a zero", {"name": "a\0b"}, "name"),
    ("name with a C1 control", {"name": "ü\x85"}, "name"),
    ("name with a surrogate", {"name": "\ud800"}, "name"),
    ("name of bytes", {"name": b"a"}, "name"),
    ("name of another class", {"name": Text("a.B")}, "name"),
    ("no name", {"name": None}, "name"),
    ("category empty", {"category": ""}, "category"),
    ("category too long", {"category": "c" * 65}, "category"),
    ("category an enum", {"category": Word.REASONING}, "category"),
    ("category very deep", {"category": deep_list()}, "category"),
    ("pool too long", {"pool_type": "p" * 65}, "pool_type"),
    ("too many capabilities", {"capabilities": tuple(f"c{i}" for i in range(65))}, "capabilities"),
    ("capability upper case", {"capabilities": ("Reasoning",)}, "capabilities"),
    ("capability with a digit first", {"capabilities": ("1a",)}, "capabilities"),
    ("capability with a newline", {"capabilities": ("a\n",)}, "capabilities"),
    ("capability not ASCII", {"capabilities": ("a٣",)}, "capabilities"),
    ("capability empty", {"capabilities": ("",)}, "capabilities"),
    ("capability too long", {"capabilities": ("c" * 65,)}, "capabilities"),
    ("capability an enum", {"capabilities": (Word.REASONING,)}, "capabilities"),
    ("capabilities a text", {"capabilities": "reasoning"}, "capabilities"),
    ("capabilities a set", {"capabilities": {"a"}}, "capabilities"),
    ("unknown level", {"requirements": Requirements(memory="huge")}, "requirements.memory"),
    ("level an enum", {"requirements": Requirements(compute=Word.LOW)}, "requirements.compute"),
    ("gpu a number", {"requirements": Requirements(gpu=1)}, "requirements.gpu"),
    ("requirements a dict", {"requirements": {"memory": "low"}}, "requirements"),
    ("requirements of another class", {"requirements": ExtendedNeeds()}, "requirements"),
    ("extra that hides a field", {"requirements": Requirements(extra={"gpu": True})}, "requirements.extra"),
    ("extra not plain", {"requirements": Requirements(extra={"a": {1}})}, "requirements.extra.a"),
    ("duration negative", {"estimated_duration": -1}, "estimated_duration"),
    ("duration too long", {"estimated_duration": MAX_DURATION_MS + 1}, "estimated_duration"),
    ("duration a float", {"estimated_duration": 1.5}, "estimated_duration"),
    ("duration a bool", {"estimated_duration": True}, "estimated_duration"),
    ("duration astronomical", {"estimated_duration": 10**5000}, "estimated_duration"),
    ("native a number", {"native_available": 1}, "native_available"),
    ("examples a text", {"examples": "one"}, "examples"),
    ("example a number", {"examples": ("a", 1)}, "examples[1]"),
    ("example a surrogate", {"examples": ("\udfff",)}, "examples[0]"),
    ("metadata a list", {"metadata": []}, "metadata"),
    ("metadata too deep", {"metadata": nested(MAX_METADATA_DEPTH + 1)}, "metadata"),
    ("metadata very deep", {"metadata": {"a": deep_list()}}, "metadata"),
    ("metadata with a tuple", {"metadata": {"a": (1,)}}, "metadata.a"),
    ("metadata of another class", {"metadata": OrderedDict(a=1)}, "metadata"),
    ("metadata empty of another class", {"metadata": OrderedDict()}, "metadata"),
    ("metadata key a number", {"metadata": {1: 2}}, "metadata"),
    ("metadata key a surrogate", {"metadata": {"\ud800": 2}}, "metadata"),
    ("metadata key of another class", {"metadata": {Text("a"): 2}}, "metadata"),
    ("metadata int too large", {"metadata": {"a": [2**64]}}, "metadata.a[0]"),
    ("metadata int astronomical", {"metadata": {"a": 10**5000}}, "metadata.a"),
    ("metadata that multiplies", {"metadata": {"a": doubling(30)}}, "metadata"),
    ("metadata not a number", {"metadata": {"a": float("nan")}}, "metadata.a"),
    ("metadata infinite", {"metadata": {"a": [{"b": float("-inf")}]}}, "metadata.a[0].b"),
    ("metadata bytes", {"metadata": {"a": {"b": b"x"}}}, "metadata.a.b"),
    ("extra infinite", {"requirements": Requirements(extra={"gb": float("inf")})}, "requirements.extra.gb"),
    ("extra bytes", {"requirements": Requirements(extra={"gb": b""})}, "requirements.extra.gb"),
    ("metadata object", {"metadata": {"a": object()}}, "metadata.a"),
    ("record too large", {"metadata": {"a": "x" * MAX_RECORD_BYTES}}, "record"),
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=lambda fields: "+".join(fields) or "defaults")
def test_what_is_allowed_is_read_back_equal(fields: dict[str, Any]) -> None:
    info, encoded = validate_encoded(ModuleInfo(**{"name": "a.B", **fields}))
    assert open_record(seal_record(encoded, Provenance(1, 1, 0, 0), FORMAT_VERSION), info.name).info == info


@pytest.mark.parametrize(("fields", "field"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_not_allowed_is_named(fields: dict[str, Any], field: str) -> None:
    found = problems_of(**fields)
    assert len(found) == 1
    assert found[0].startswith(f"{field}: ")
    assert len(found[0]) < 200


def test_a_record_of_exactly_the_limit_is_allowed() -> None:
    room = MAX_RECORD_BYTES - len(encode(ModuleInfo("a.B", examples=("x" * 70_000,)))) + 70_000
    info = ModuleInfo("a.B", examples=("x" * room,))
    assert len(validate_encoded(info)[1]) == MAX_RECORD_BYTES
    with pytest.raises(InvalidModuleError):
        validate_module(ModuleInfo("a.B", examples=("x" * (room + 1),)))


def test_one_error_names_every_field_that_is_wrong() -> None:
    fields = {
        "name": "",
        "category": None,
        "capabilities": ("X",),
        "requirements": Requirements(memory="m", compute="c", gpu=None, extra={"a": ()}),
        "pool_type": "",
        "estimated_duration": -1,
        "native_available": None,
        "examples": (1, None),
        "metadata": {"a": {1}, "b": [()]},
    }
    named = [problem.split(":")[0] for problem in problems_of(**fields)]
    assert sorted(set(named)) == sorted(
        [
            *("name", "category", "capabilities", "pool_type", "estimated_duration", "native_available"),
            *("requirements.memory", "requirements.compute", "requirements.gpu", "requirements.extra.a"),
            *("examples[0]", "examples[1]", "metadata.a", "metadata.b[0]"),
        ]
    )


def test_an_error_survives_pickling_and_says_what_to_do() -> None:
    import pickle

    with pytest.raises(InvalidModuleError) as caught:
        validate_module(ModuleInfo(""))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.problems, again.subject) == (
        str(caught.value),
        caught.value.problems,
        caught.value.subject,
    )
    assert again.remedy == caught.value.remedy != ""


@pytest.mark.parametrize("given_info", [None, {"name": "a.B"}, Extended("a.B"), object()])
def test_only_module_infos_are_taken(given_info: Any) -> None:
    with pytest.raises(InvalidModuleError):
        validate_module(given_info)


def test_containers_are_normalised() -> None:
    pair = namedtuple("pair", "a b")("x", "y")
    info = validate_module(ModuleInfo("a.B", capabilities=pair, examples=["e"]))  # type: ignore[arg-type]
    assert (type(info.capabilities), info.capabilities, info.examples) == (tuple, ("x", "y"), ("e",))


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from([Word.REASONING, Text("t"), (), object, 2**70, "low", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries(
        {"name": st.text(min_size=1, max_size=20)},
        optional={
            "category": st.text(max_size=70) | anything,
            "capabilities": st.lists(st.sampled_from(["a", "b_1", "complex_reasoning"]), max_size=3) | anything,
            "requirements": st.builds(
                Requirements,
                memory=st.sampled_from(["low", "very_high"]) | anything,
                gpu=st.booleans() | anything,
                extra=st.dictionaries(st.text(), anything, max_size=3) | anything,
            ),
            "estimated_duration": st.integers() | anything,
            "examples": st.lists(st.text(), max_size=2).map(tuple) | anything,
            "metadata": st.dictionaries(st.text(), anything, max_size=3) | anything,
        },
    )
)
def test_whatever_is_accepted_is_stored_as_it_is_and_found_by_the_same_terms(fields: dict[str, Any]) -> None:
    try:
        info, encoded = validate_encoded(ModuleInfo(**fields))
    except InvalidModuleError:
        return
    stored = seal_record(encoded, Provenance(1, 1, 0, 0), FORMAT_VERSION)
    again = decode_info(stored).info
    assert again == info
    assert msgspec.json.decode(msgspec.json.encode(to_plain(info))) == to_plain(info)
    assert msgspec.msgpack.encode(again, order="deterministic") == encoded
    words = Vocabulary(CORE_IMPLICATIONS)
    assert attribute_terms(again, words) == attribute_terms(info, words)
    assert short_terms(again.name) == short_terms(info.name)


BAD = ModuleInfo("bad", estimated_duration=-1)


@pytest.mark.parametrize(
    "change",
    [
        lambda writer: writer.register_module(BAD),
        lambda writer: writer.register_modules([ModuleInfo("a.New"), BAD, ModuleInfo("a.Other", category="")]),
        lambda writer: writer.register_modules([ModuleInfo("a.New"), None]),
        lambda writer: writer.register_module(ModuleInfo("dspy.Predict"), expected_version=7),
        lambda writer: writer.register_module(ModuleInfo("a.New"), expected_version=1),
        lambda writer: writer.unregister_module("a.Missing"),
        lambda writer: writer.unregister_module("\ud800"),
        lambda writer: writer.unregister_module(""),
        lambda writer: writer.set_alias("", "dspy.Predict"),
        lambda writer: writer.set_alias("p\0", "dspy.Predict"),
        lambda writer: writer.set_alias("p", "a.Missing"),
        lambda writer: writer.remove_alias("missing"),
        lambda writer: writer.set_implications({"A": ("b",)}),
        lambda writer: writer.set_implications({"a": ("b",), "b": ("c",), "c": ("a",)}),
        lambda writer: writer.set_implications({"reasoning": ("complex_reasoning",)}),
    ],
)
def test_i17_what_is_refused_changes_nothing(registry_folder: Path, change: Callable[[RegistryWriter], object]) -> None:
    from dspy_registry import RegistryError

    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        before, revision = dict(registry), writer.revision
        with pytest.raises(RegistryError):
            change(writer)
        assert (dict(registry), writer.revision, registry.revision) == (before, revision, revision)
        assert writer.register_module(ModuleInfo("a.After")) == revision + 1


def test_i17_one_error_names_what_is_wrong_with_every_module_of_a_batch(registry_folder: Path) -> None:
    batch = [ModuleInfo("a.Good"), ModuleInfo("a.Bad", category=""), ModuleInfo("a.Worse", pool_type="", examples="x")]
    with RegistryWriter(registry_folder) as writer, pytest.raises(InvalidModuleError) as caught:
        writer.register_modules(batch)
    assert [problem.split(" ")[0:2] for problem in caught.value.problems] == [
        ["a.Bad:", "category:"],
        ["a.Worse:", "pool_type:"],
        ["a.Worse:", "examples:"],
    ]
