"""The clients: the embedded writer's calls and errors, over a socket."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dspy_registry import (
    InvalidArgumentError,
    InvalidModuleError,
    ModuleInfo,
    Registry,
    RegistryError,
    RegistryWriter,
    Requirements,
)
from dspy_registry.registry_store import errors
from dspy_registry.registry_store.wire_errors import pack, unpack
from dspy_registry.writer.daemon.bounds import Bounds
from dspy_registry.writer.discovery.report import DiscoveryFailure, DiscoveryReport
from tests.support.client_kinds import Blocking, Opened, blocking, either, raised
from tests.support.daemon_process import Served, daemon, module


@pytest.fixture
def served(registry_folder: Path) -> Iterator[Served]:
    with daemon(registry_folder) as served:
        yield served


# The calls


def everything(writer: Any) -> list[Any]:
    """Every call once, and what each returns."""
    report = DiscoveryReport(
        modules=(
            module("found.One", metadata={"discovered_from": "found"}),
            module("acme.m"),
            module("found.Bad", category=""),
        ),
        failures=(DiscoveryFailure("lost", "gone"),),
        probed=("found",),
    )
    outcomes = [
        writer.register_module(module("acme.m")),
        writer.register_module(module("acme.m", category="other"), expected_version=1),
        writer.register_module(module("acme.m", category="other")),
        writer.register_modules([module("acme.a"), module("acme.b")]),
        writer.register_modules(iter([module("acme.a"), module("acme.c")])),
        writer.register_modules([]),
        writer.set_alias("short", "acme.a"),
        writer.set_alias("gone", "acme.b"),
        writer.remove_alias("gone"),
        writer.set_implications({"summarisation": ["writing"]}),
        writer.reset_usage("acme.a"),
        writer.reset_usage("short", 1),
        writer.unregister_module("acme.b"),
        writer.revision,
    ]
    discovered = [
        vars(writer.apply_discovery(report)),
        vars(writer.apply_discovery(DiscoveryReport(probed=("found",)))),
    ]
    return outcomes + discovered


def contents(folder: Path) -> dict[str, Any]:
    with Registry(folder) as registry:
        told = {name: registry.describe(name) for name in registry}
        return {name: (kept.info, kept.provenance.version, kept.provenance.source) for name, kept in told.items()}


@either
def test_the_same_calls_do_the_same(served: Served, connect: Opened, tmp_path: Path) -> None:
    with RegistryWriter(tmp_path / "embedded") as writer, connect(served.path) as client:
        assert everything(client) == everything(writer)
    assert contents(served.path) == contents(tmp_path / "embedded")
    with Registry(served.path) as registry:
        assert registry.get_module("short") == module("acme.a")
        assert registry.find_by_capability("writing") == registry.find_by_capability("summarisation") != ()


CYCLE: dict[str, list[str]] = {"a": ["b"], "b": ["a"]}
BAD_CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("register_module", (module(""),), {}),
    ("register_module", (module("acme.\ud800"),), {}),
    ("register_module", (module("acme.m", capabilities=("No",), estimated_duration=-1, metadata={"a": {1, 2}}),), {}),
    ("register_module", (module("acme.m", requirements=Requirements(memory="vast")),), {}),
    ("register_module", (module("acme.m", metadata={"text": "x" * 1_100_000}),), {}),
    ("register_module", ({"name": "acme.m"},), {}),
    ("register_module", (module("acme.m"),), {"expected_version": 1}),
    ("register_module", (module("dspy.Predict"),), {"expected_version": 0}),
    ("register_modules", ([module("acme.m"), module(""), "no", module("acme.n", category="")],), {}),
    ("register_modules", ([module("")] * 30,), {}),
    ("unregister_module", ("acme.none",), {}),
    ("unregister_module", ("",), {}),
    ("unregister_module", ("\ud800",), {}),
    ("unregister_module", (None,), {}),
    ("set_alias", ("alias", "acme.none"), {}),
    ("set_alias", ("", "dspy.Predict"), {}),
    ("set_alias", ("\ud800", "dspy.Predict"), {}),
    ("set_alias", ("alias", "\ud800"), {}),
    ("remove_alias", ("alias",), {}),
    ("remove_alias", ("\ud800",), {}),
    ("release", ("acme.none",), {}),
    ("release", ("\ud800",), {}),
    ("rename_module", ("acme.none", "acme.new"), {}),
    ("rename_module", ("dspy.Predict", "acme.new"), {}),
    ("rename_module", ("dspy.Predict", "acme."), {}),
    ("rename_module", ("\ud800", "acme."), {}),
    ("register_module", (module("acme."),), {}),
    ("set_alias", ("a@b", "dspy.Predict"), {}),
    ("set_implications", (CYCLE,), {}),
    ("set_implications", ({"reasoning": ["complex_reasoning"]},), {}),
    ("set_implications", ({"No": ["no"]},), {}),
]


@either
def test_the_same_calls_fail_the_same(served: Served, connect: Opened, tmp_path: Path) -> None:
    with RegistryWriter(tmp_path / "embedded") as writer, connect(served.path) as client:
        for call, given, named in BAD_CALLS:
            embedded = raised(getattr(writer, call), *given, **named)
            remote = raised(getattr(client, call), *given, **named)
            assert (type(remote), str(remote), vars(remote)) == (type(embedded), str(embedded), vars(embedded))
        assert client.revision == writer.revision == 1


@either
def test_an_expected_version_that_is_none_is_refused(served: Served, connect: Opened) -> None:
    with connect(served.path) as client:
        for version in (-1, 2**70, True, "1", 1.0):
            refused = raised(client.register_module, module("acme.m"), expected_version=version)
            assert isinstance(refused, InvalidArgumentError)


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RegistryError)]
)
def test_every_error_crosses_the_socket(kind: type[RegistryError]) -> None:
    given = {
        "UnknownModuleError": ("acme.m", ("acme.n",)),
        "AmbiguousNameError": ("m", ("acme.m", "other.m")),
        "UnknownVersionError": ("acme.m", 9, (3, 2)),
        "UnknownLabelError": ("acme.m", "live", ("champion",)),
        "LabelConflictError": ("acme.m", "live", "3", "-"),
        "InvalidModuleError": ("acme.m", ("name: bad", "category: bad")),
        "InvalidProgramError": ("acme.qa:Qa", ("it is too large",)),
        "ProgramRefusedError": ("acme.Qa@live", ("predictor qa: missing here",)),
        "NoProgramError": ("acme.Qa", 3),
        "NoCandidateError": (),  # of readers alone
        "ConflictError": ("acme.m", 1, 2),
        "LimitReachedError": ("module:acme.m", 2, ("process 7, for 3 s",)),
        "FormatVersionError": (2, 1),
        "WriterLockedError": ("/registry", None),
    }.get(kind.__name__, ("something is wrong.",))
    error = kind(*given)  # type: ignore[arg-type]
    error.remedy = "Do this."
    found = unpack(pack(1, error))
    assert (type(found), found.args, str(found), vars(found)) == (kind, error.args, str(error), vars(error))


def test_an_error_that_cannot_cross_is_told_as_text() -> None:
    for error in (
        ZeroDivisionError("by zero"),
        RegistryError("\ud800" * 9000),
        InvalidModuleError("x", ["p" * 9000] * 900),
    ):
        found = unpack(pack(1, error))
        assert isinstance(found, RegistryError)
        assert len(str(found)) < 500_000
        str(found).encode()


def test_the_client_of_a_worker_loads_nothing_heavy() -> None:
    code = "import sys; from dspy_registry import WriterClient; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["asyncio", "click", "dspy", "rich", "watchfiles"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("text", ["p", "\ud800", "\N{SNOWMAN}"])
def test_an_error_takes_a_bounded_room(text: str) -> None:
    for error in (
        InvalidModuleError(text * 9000, [text * 9000] * 900),
        RegistryError(text * 90_000, remedy=text * 90_000),
    ):
        packed = pack(1, error)
        assert len(msgspec.msgpack.encode(packed)) < 17 * 1024
        assert type(unpack(packed)) is type(error)


def test_an_embedded_writer_refuses_the_same_versions(tmp_path: Path) -> None:
    with RegistryWriter(tmp_path / "embedded") as writer:
        for version in (-1, 2**70, True, "0", 0.0):
            refused = raised(writer.register_module, module("acme.m"), expected_version=version)
            assert isinstance(refused, InvalidArgumentError)
        writer.register_module(module("acme.m"), expected_version=0)


# Batches


@pytest.mark.parametrize(
    ("connect", "count"),
    [
        pytest.param(blocking, 20_000, id="sync"),
        *[pytest.param(each, 100_000, marks=pytest.mark.full) for each in (blocking, Blocking)],
    ],
)
def test_a_large_batch_comes_in_many_frames_and_lands_at_once(served: Served, connect: Opened, count: int) -> None:
    steps: list[tuple[int, int]] = []
    batch = [module(f"bulk.m{n}", metadata={"number": n}) for n in range(count)]
    with connect(served.path) as client, Registry(served.path) as registry:
        assert client.register_modules(batch, progress=lambda *step: steps.append(step)) == 2 == registry.revision
        assert len(registry) == count + 6
        assert registry["bulk.m17777"].metadata == {"number": 17777}
    assert steps == sorted(steps)
    assert steps[-1] == (count, count)


@either
def test_a_large_batch_with_one_that_is_refused_changes_nothing(served: Served, connect: Opened) -> None:
    batch = [module(f"bulk.m{n}") for n in range(20_000)]
    with connect(served.path) as client, Registry(served.path) as registry:
        refused = raised(client.register_modules, [*batch, module("bulk.bad", category="")])
        assert isinstance(refused, InvalidModuleError)
        assert len(refused.problems) == 1
        assert (registry.revision, len(registry)) == (1, 6)


@either
def test_records_of_the_largest_size_pass(served: Served, connect: Opened) -> None:
    def large(name: str) -> ModuleInfo:
        return module(name, metadata={"text": "x" * (1024 * 1024 - 200)})

    with connect(served.path) as client, Registry(served.path) as registry:
        client.register_module(large("acme.l1"))
        client.register_modules([large(f"acme.l{n}") for n in range(2, 5)])
        assert registry["acme.l4"] == large("acme.l4")


@either
def test_a_batch_beyond_any_limit_is_refused_before_it_is_sent(served: Served, connect: Opened) -> None:
    largest = module("acme.m", metadata={"text": "x" * (1024 * 1024 - 200)})
    with connect(served.path) as client:
        refused = raised(client.register_modules, (largest for _ in range(193)))
        assert isinstance(refused, InvalidModuleError)
        assert str(Bounds().batch_bytes) in refused.message
