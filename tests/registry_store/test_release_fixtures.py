"""Registries that an earlier release wrote: today's code reads the same from them, and writes to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest

from dspy_registry import Change, ModuleInfo, Recommendation, Registry, RegistryWriter, StoredModule, UnknownModuleError
from dspy_registry.readers.snapshot import Snapshot
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.codec import CHECKSUM_BYTES
from dspy_registry.registry_store.errors import UpgradeRequiredError
from dspy_registry.registry_store.scan import items_from, value_at
from dspy_registry.registry_store.sharing import attach, detach
from dspy_registry.registry_store.usage import ModuleUsage, Ring, VersionUsage
from dspy_registry.registry_store.usage_rows import version_of_key
from tests.conftest import violations
from tests.support import TESTS
from tests.support.usage_helpers import NOW, batches, merge

FIXTURES = TESTS / "fixtures"
RELEASE = FIXTURES / "release-0.1.0"
WRITTEN_BY = ("release-0.1.0", "format-2")
TOLD: dict[str, dict[str, dict[str, Any]]] = {
    name: json.loads((FIXTURES / name / "answers.json").read_text(encoding="utf-8")) for name in WRITTEN_BY
}
LATER_FIELDS: dict[str, Any] = {
    "stored": list[StoredModule],
    "history": dict[str, list[StoredModule]],
    "changes": list[Change],
    "usages": list[ModuleUsage],
}
SIZES = (10, 500, 50_000)
FIELDS_OF_USAGE = 13


@pytest.fixture(params=[(name, kind) for name, told in TOLD.items() for kind in sorted(told)], ids="-".join)
def registry_of_release(request: pytest.FixtureRequest, registry_folder: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of one registry, and what the release that wrote it answered."""
    name, kind = request.param
    shutil.copytree(FIXTURES / name / kind, registry_folder)
    return registry_folder, TOLD[name][kind]


@pytest.fixture(params=sorted(TOLD["release-0.1.0"]))
def registry_of_format_1(request: pytest.FixtureRequest, registry_folder: Path) -> Path:
    """A copy of a registry that release 0.1.0 wrote."""
    shutil.copytree(RELEASE / request.param, registry_folder)
    return registry_folder


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def with_later_fields(question: str, answer: Any) -> Any:
    """What the release answered, with the defaults of the fields that were added to it since."""
    if question == "routes":
        return {name: list(map(without_limits, routes)) for name, routes in answer.items()}
    kind = LATER_FIELDS.get(question)
    return answer if kind is None else plain(msgspec.convert(answer, kind))


def without_limits(route: dict[str, Any]) -> dict[str, Any]:
    """What that release made of calls of all versions together is no limit any more: they decide nothing."""
    return {field: value for field, value in route.items() if field not in ("timeout", "estimated_cost")}


def about_modules(registry: Registry, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "revision": registry.revision,
        "committed_at": registry.committed_at,
        "modules": [registry[name] for name in registry],
        "stored": [registry.describe(name) for name in registry],
        "aliases": {alias: registry.get_module(alias).name for alias in told["aliases"]},
        "history": {name: registry.history(name) for name in registry},
        "routes": {
            name: [without_limits(plain(route)) for route in routes_of(registry, name, "observed")] for name in registry
        },
    }


def routes_of(registry: Registry, name: str, basis: str) -> list[Recommendation]:
    return [registry.routing_recommendation(name, input_size=size, basis=basis) for size in SIZES]


def found(registry: Registry, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "by_capability": {word: registry.find_by_capability(word) for word in told["by_capability"]},
        "by_category": {word: registry.find_by_category(word) for word in told["by_category"]},
        "find": {
            "pool": registry.find(pool_type="neural"),
            "memory": registry.find(max_memory="medium", gpu=False),
            "native": registry.find(capabilities=("reasoning",), native=True),
        },
    }


def over_time(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "changes": snapshot.changes_since(0),
        "usages": snapshot.usages(),
        "calls_lost": snapshot.calls_lost(),
    }


def answers_of(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    """What today's code answers where a release answered `told`; equal answers as that release put them."""
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        parts = {**about_modules(registry, told), **found(registry, told), **over_time(snapshot)}
        answers = {question: plain(answer) for question, answer in parts.items()}
        answers["unknown"] = [name for name in told["unknown"] if name not in registry]
    for question, answer in told.items():
        if answers[question] == with_later_fields(question, answer):
            answers[question] = answer
    return answers


def test_answers_are_those_of_the_release(registry_of_release: tuple[Path, dict[str, Any]]) -> None:
    folder, told = registry_of_release
    assert answers_of(folder, told) == told
    with Registry(folder) as registry:
        for name in told["unknown"]:
            with pytest.raises(UnknownModuleError):
                registry.get_module(name)


def test_lifetime_totals_decide_nothing(registry_of_format_1: Path) -> None:
    with Registry(registry_of_format_1) as registry:
        for name in registry:
            assert routes_of(registry, name, "observed") == routes_of(registry, name, "declared")


def test_reports_add_to_lifetime_totals_alone(registry_of_format_1: Path) -> None:
    """In the bytes of that release, which knows neither versions nor kinds."""
    folder = registry_of_format_1
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        if writer.store.environment.dbs.format > 1:
            pytest.skip("format 2 keeps statistics by version")
        before = registry.usage("dspy.Predict")
        version = registry.describe("dspy.Predict").provenance.version
        merge(writer, batches([("dspy.Predict", 50.0, at % 2 == 0) for at in range(50)], now=4 * NOW), now=4 * NOW)
        after = registry.usage("dspy.Predict")
        assert (after.calls, after.errors) == (before.calls + 50, before.errors + 25)
        assert (after.kinds, after.failed_minutes) == ((), Ring())
        assert registry.usage("dspy.Predict", version) == VersionUsage("dspy.Predict", version)
        with writer.store.environment.reading() as txn:
            keys = [key for key, _ in txn.cursor(writer.store.environment.dbs.usage)]
            value = txn.get(b"dspy.Predict", None, writer.store.environment.dbs.usage)
        assert [key for key in keys if version_of_key(key)] == []
        assert len(msgspec.msgpack.decode(value[:-CHECKSUM_BYTES])[0]) == FIELDS_OF_USAGE
    assert violations(folder) == []


def test_every_answer_is_asked_for() -> None:
    told = {"modules", "stored", "aliases", "unknown", "by_capability", "by_category", "find", "history", "changes"}
    told |= {"revision", "committed_at", "usages", "calls_lost", "routes"}
    assert [set(answers) for kinds in TOLD.values() for answers in kinds.values()] == [told] * 4


def test_check_is_content(registry_of_release: tuple[Path, dict[str, Any]]) -> None:
    assert violations(registry_of_release[0]) == []


def raw(folder: Path, database: str, key: bytes) -> bytes:
    environment = attach(folder)
    try:
        with environment.reading() as txn:
            return bytes(txn.get(key, db=getattr(environment.dbs, database)))
    finally:
        detach(environment)


def sealed(payload: bytes) -> bytes:
    return payload + crc32(payload).to_bytes(4, "little")


def test_i18_a_registry_of_format_1_stays_one_byte_for_byte(registry_folder: Path) -> None:
    pack = msgspec.msgpack.encode
    shutil.copytree(RELEASE / "full", registry_folder)
    with RegistryWriter(registry_folder) as writer:
        revision = writer.register_module(ModuleInfo("acme.New", capabilities=("x",)))
        writer.set_alias("new", "acme.New")
    with Registry(registry_folder) as registry:
        kept = registry.describe("acme.New").provenance
        with registry.snapshot() as snapshot:
            change = snapshot.changes_since(revision - 1)[0]
    numbers = [kept.version, kept.revision, kept.updated_at, kept.sequence]
    record = b"\x93" + pack(ModuleInfo("acme.New", capabilities=("x",))) + pack(numbers) + b"\xc4\x04"
    assert raw(registry_folder, "modules", b"acme.New") == sealed(record)
    modules = [["acme.New", "registered", 1]]
    logged = [revision, kept.updated_at, modules, list(change.keys), list(change.terms), False]
    assert raw(registry_folder, "changes", layout.revision_key(revision)) == sealed(pack(logged))
    assert raw(registry_folder, "aliases", b"new") == sealed(pack(["acme.New", "client"]))
    assert raw(registry_folder, "postings", layout.posting_key(b"capability:x", 0)) == sealed(
        kept.sequence.to_bytes(4, "big")
    )
    environment = attach(registry_folder)
    try:
        with environment.reading() as txn:
            assert sorted(key for key, _ in txn.cursor()) == sorted(layout.DATABASES_OF_FORMAT_1)
        assert environment.dbs.format == 1
        assert environment.dbs.labels is environment.dbs.programs is environment.dbs.policies is None
        assert list(items_from(txn, environment.dbs.labels, b"")) == []
        assert value_at(txn, environment.dbs.policies, b"any") is None
        with pytest.raises(UpgradeRequiredError, match=r"labels cannot be kept.*dspy-registry upgrade"):
            environment.dbs.need_format_2("labels")
    finally:
        detach(environment)


def test_it_stays_writable(registry_of_release: tuple[Path, dict[str, Any]]) -> None:
    folder, told = registry_of_release
    names = [name for name, *_ in told["modules"]]
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        assert list(registry) == names
        writer.register_module(ModuleInfo(name="acme.After", category="prediction", capabilities=("reasoning",)))
        writer.unregister_module(names[0])
        writer.set_alias("afterwards", "acme.After")
        assert list(registry) == [*names[1:], "acme.After"]
        assert registry.get_module("afterwards").name == "acme.After"
        assert registry.find_by_capability("reasoning")[-1] == "acme.After"
