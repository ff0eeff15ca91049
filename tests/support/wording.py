"""How each error of the project is provoked, so that its wording can be compared with tests/wording.yaml.

`python -m tests.support.wording` writes that file again after a wording was changed.
"""

from __future__ import annotations

import copy
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb
import pytest
import yaml

from dspy_registry import ModuleInfo, Registry, RegistryWriter, Requirements, UsageReporter, WriterClient
from dspy_registry.demo.processes import DemoError
from dspy_registry.registry_store import errors
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.codec import open_record, seal, unseal
from dspy_registry.registry_store.disk import explained
from dspy_registry.registry_store.handles import translated
from dspy_registry.registry_store.opening import create
from dspy_registry.registry_store.postings import load_block
from dspy_registry.registry_store.protocol import FrameReader, version_mismatch
from dspy_registry.registry_store.revision import RevisionFile
from dspy_registry.registry_store.validation import module_problems as problems_of
from dspy_registry.registry_store.vocabulary import Vocabulary
from dspy_registry.writer.daemon.lifecycle import Daemon
from dspy_registry.writer.discovery.report import discover
from dspy_registry.writer.manifests.parse import load
from dspy_registry.writer.restore import restore
from tests.support import TESTS
from tests.support.command import run

WORDING: Final = TESTS / "wording.yaml"


class Place(NamedTuple):
    """A registry with its writer and a reader, and a folder for what else is needed."""

    tmp: Path
    folder: Path
    writer: RegistryWriter
    reader: Registry


def make_place(tmp: Path) -> Place:
    """A registry of the core modules in `tmp`, beside folders that are none."""
    folder = tmp / "registry"
    writer = RegistryWriter(folder)
    (tmp / "full").mkdir()
    (tmp / "full" / "mine").touch()
    (tmp / "file").touch()
    (tmp / "partial" / ".partial").mkdir(parents=True)
    (tmp / "unborn").mkdir()
    create(tmp / "unborn")
    (tmp / "odd").mkdir()
    (tmp / "odd" / "revision").write_bytes(b"odd")
    return Place(tmp, folder, writer, Registry(folder))


def raise_(error: Exception) -> Callable[[Place], object]:
    """What raises an error that was made by hand."""

    def call(_: Place) -> None:
        raise error

    return call


def closed(thing: Any) -> Any:
    """The same, closed."""
    thing.close()
    return thing


def snapshot_of(place: Place) -> Any:
    """A snapshot of the registry that ends with the test's process."""
    with place.reader.snapshot() as snapshot:
        return snapshot


def system_error(number: int, place: Place) -> None:
    """What is made of an error of the system."""
    with explained(place.folder):
        raise OSError(number, os.strerror(number))


def lmdb_error(kind: str) -> Callable[[Place], object]:
    """What is made of an error of LMDB."""

    def call(place: Place) -> None:
        error = getattr(lmdb, kind)("its own words")
        error.code = 0
        raise translated(error, place.folder)

    return call


def chain(length: int) -> dict[str, tuple[str, ...]]:
    """Words each of which implies the next."""
    return {f"w{number}": (f"w{number + 1}",) for number in range(length)}


PROVOKED: dict[str, Callable[[Place], object]] = {
    # Made by hand: the text comes from the fields.
    "unknown module": raise_(errors.UnknownModuleError("acme.Y")),
    "unknown module, others near": raise_(errors.UnknownModuleError("acme.Y", ("acme.X", "acme.Z"))),
    "unknown alias": raise_(errors.UnknownAliasError("quick")),
    "ambiguous name": raise_(errors.AmbiguousNameError("X", ("a.X", "b.X"))),
    "unknown version": raise_(errors.UnknownVersionError("acme.X", 9, (3, 2))),
    "no earlier version": raise_(errors.UnknownVersionError("acme.X", None)),
    "unknown label": raise_(errors.UnknownLabelError("acme.X", "live", ("champion",))),
    "label conflict": raise_(errors.LabelConflictError("acme.X", "live", "3", "3=90 4=10")),
    "invalid module": raise_(errors.InvalidModuleError("acme.X", ("one: wrong", "two: wrong"))),
    "conflict": raise_(errors.ConflictError("acme.X", 7, 1)),
    "conflict, not registered": raise_(errors.ConflictError("acme.X", 3, 0)),
    "unknown module, a short name": raise_(errors.UnknownModuleError("chain_of_thought", ["dspy.ChainOfThought"])),
    "no candidate, a capability that no module has": lambda place: place.reader.route(capabilities="resoning"),
    "unknown modules": lambda place: place.reader.route(names=("dspy.Predikt", "dspy.Predict", "acme.Nobody")),
    "invalid program": raise_(errors.InvalidProgramError("acme.X", ("one: wrong", "two: wrong"))),
    "program refused": raise_(errors.ProgramRefusedError("acme.X", ("one: wrong",))),
    "no program": raise_(errors.NoProgramError("acme.X", 2)),
    "no candidate": raise_(errors.NoCandidateError((("acme.X", 1, "deadline", "it takes 9 s"),))),
    "no candidate by these conditions": raise_(errors.NoCandidateError()),
    "route failed": raise_(errors.RouteFailedError("it.")),
    "limit reached": raise_(errors.LimitReachedError("module:acme.X", 2, ("process 7, for 3 s",))),
    "other format": raise_(errors.FormatVersionError(2, 1)),
    "writer locked": raise_(errors.WriterLockedError("/registry", 7)),
    "writer locked by nobody known": raise_(errors.WriterLockedError("/registry", None)),
    # Made by hand: the remedy is the class's.
    "format 1": raise_(errors.UpgradeRequiredError("it.")),
    "no number left": raise_(errors.RegistryFullError("it.")),
    "damaged": raise_(errors.CorruptRecordError("it.")),
    "a file that was lost": raise_(errors.DamagedStoreError("it.")),
    "no slot": raise_(errors.NoReaderSlotError("it.")),
    "forked": raise_(errors.ForkedSnapshotError("it.")),
    "no answer in time": raise_(errors.WriterTimeoutError("it.")),
    "busy": raise_(errors.BusyError("it.")),
    "cluster unavailable": raise_(errors.ClusterUnavailableError("it.")),
    "cluster full": raise_(errors.ClusterFullError("it.")),
    "cluster access": raise_(errors.ClusterAccessError("it.")),
    "cluster membership": raise_(errors.ClusterMembershipError("it.")),
    "demo": raise_(DemoError("it.")),
    # Arguments.
    "empty path": lambda place: Registry(""),
    "no home directory": lambda place: Registry("~no such user/registry"),
    "name of another type": lambda place: place.reader.get_module(5),  # type: ignore[arg-type]
    "copied snapshot": lambda place: copy.copy(snapshot_of(place)),
    "cache size": lambda place: Registry(place.folder, cache_size=-1),
    "calls": lambda place: Registry(place.folder, min_observed_calls=-1),
    "input size as a word": lambda place: place.reader.estimate_duration("Predict", "huge"),
    "input size as a number": lambda place: place.reader.routing_recommendation("Predict", input_size=-1),
    "basis": lambda place: place.reader.estimate_duration("Predict", basis="guessed"),
    "level": lambda place: place.reader.find(max_memory="huge"),
    "watch since": lambda place: place.reader.watch(since=-1),
    "watch timeout": lambda place: place.reader.watch(timeout=-1),
    "watch poll": lambda place: place.reader.watch(poll=-1),
    "expected version": lambda place: place.writer.register_module(ModuleInfo("a.B"), expected_version=-1),
    "client timeout": lambda place: WriterClient(place.folder, timeout=0),
    "interval": lambda place: UsageReporter(place.folder, interval=0),
    "discovery timeout": lambda place: discover(timeout=0),
    "group": lambda place: Daemon(place.folder, group="no-such-group"),
    "path too long for a socket": lambda place: WriterClient("/" + "x" * 120),
    # Words.
    "cycle": lambda place: Vocabulary({"a": ("b",), "b": ("a",)}),
    "malformed words": lambda place: Vocabulary({"": ("B",)}),
    "too many words implied": lambda place: Vocabulary(chain(257)),
    "too many words implied by one": lambda place: Vocabulary({"a": tuple(f"w{n}" for n in range(65))}),
    "too many words that imply": lambda place: Vocabulary({f"f{n}": ("a",) for n in range(1025)}),
    "no list of words": lambda place: place.writer.set_implications({"a": "bcd"}),
    "no text": lambda place: place.writer.set_implications({1: ["b"]}),  # type: ignore[dict-item]
    "no mapping": lambda place: place.writer.set_implications([]),  # type: ignore[arg-type]
    # Modules and aliases.
    "no record": lambda place: place.writer.register_module(None),  # type: ignore[arg-type]
    "batch": lambda place: place.writer.register_modules([ModuleInfo("a.B", category=""), ModuleInfo("")]),
    "record too large": lambda place: place.writer.register_module(ModuleInfo("a.B", examples=("x" * 2**20,))),
    "alias that is a full name": lambda place: place.writer.set_alias("dspy.ReAct", "dspy.Predict"),
    "alias without a name": lambda place: place.writer.set_alias("", "dspy.Predict"),
    # Files.
    "no registry": lambda place: Registry(place.tmp / "none"),
    "no folder": lambda place: RegistryWriter(place.tmp / "file"),
    "not completed": lambda place: Registry(place.tmp / "unborn"),
    "no revision file": lambda place: RevisionFile(place.tmp / "odd"),
    "backup into a folder with files": lambda place: backup(place.tmp / "full", place.folder),
    "backup into a file": lambda place: backup(place.tmp / "file", place.folder),
    "backup below a file": lambda place: backup(place.tmp / "file" / "below", place.folder),
    "backup where another is made": lambda place: backup(place.tmp / "partial", place.folder),
    "restore of itself": lambda place: restore(place.folder, place.folder),
    "full disk": lambda place: system_error(28, place),
    "read-only disk": lambda place: system_error(30, place),
    "another error of the disk": lambda place: system_error(5, place),
    "checksum": lambda place: unseal(b"junk", "a thing"),
    "checksum of a record": lambda place: open_record(b"junk", "acme.X"),
    "record that is none": lambda place: open_record(seal(b""), "acme.X"),
    "posting that is none": lambda place: load_block(seal(b""), b"key", 1),
    # LMDB: its own words are in the message, the remedy is ours.
    **{
        kind: lmdb_error(kind)
        for kind in (
            "MapFullError",
            "LockError",
            "DiskError",
            "PanicError",
            "CorruptedError",
            "InvalidError",
            "MemoryError",
        )
    },
    # Things that were closed.
    "closed registry": lambda place: closed(Registry(place.folder)).get_module("Predict"),
    "closed snapshot": lambda place: snapshot_of(place).get_module("Predict"),
    "closed writer": lambda place: closed(RegistryWriter(place.tmp / "other")).register_module(ModuleInfo("a.B")),
    "closed client": lambda place: closed(WriterClient(place.folder)).status(),
    # The daemon.
    "no daemon": lambda place: WriterClient(place.tmp / "unborn").status(),
    "a writer that is no daemon": lambda place: WriterClient(place.folder, timeout=0.01).status(),
    "daemon that does not run": lambda place: Daemon(place.tmp / "idle").store,
    "other protocol": raise_(version_mismatch(1, 2)),
    "long frame": lambda place: list(FrameReader(10).feed(b"\0\0\1\0")),
    # Discovery.
    "no interpreter": lambda place: discover(python="/nowhere/python"),
}


# What is wrong with a module

WRONG_MODULES = (
    ModuleInfo("", category="c" * 65, capabilities=("Loud",), pool_type=5, estimated_duration=-1),  # type: ignore[arg-type]
    ModuleInfo("a\nb", category="\ud800", capabilities="x", estimated_duration=1.5),  # type: ignore[arg-type]
    ModuleInfo("a.B", requirements=Requirements(memory="huge", gpu=1, extra={"gpu": True})),  # type: ignore[arg-type]
    ModuleInfo("a.B", requirements={}, examples="x", native_available=1),  # type: ignore[arg-type]
    ModuleInfo("a.B", capabilities=("a",) * 65, examples=(1,), metadata=[]),  # type: ignore[arg-type]
    ModuleInfo("a.B", metadata={"a": {1}, "b": float("nan"), "c": 2**64, "d": {1: 2}}),
)


def module_problems() -> list[str]:
    """All that is wrong with them."""
    return [problem for info in WRONG_MODULES for problem in problems_of(info)]


# What is wrong with a manifest: what is read, and as what

MANIFESTS: dict[str, tuple[str, str]] = {
    "wrong modules": (".yaml", "colour: 1\nmodules:\n- nam: x\n- name: a\n  estimated_duration: -1\n- name: a\n- 7\n"),
    "wrong types": (".yaml", "modules: 5\naliases: 5\nimplications: 5\ndefaults: 5\n$schema: 5\n"),
    "wrong words": (
        ".yaml",
        "aliases: {'': b, c: 5}\nimplications: {Q: [x], x: y, z: [3]}\ndefaults: [{pool_type: x}]\n",
    ),
    "too many implied": (".yaml", f"implications: {{much: [{', '.join(['x'] * 65)}]}}\n"),
    "no mapping": (".yaml", "[]"),
    "a key twice in YAML": (".yaml", "a: 1\nb: 2\na: 3\n"),
    "no YAML": (".yaml", "a: [1\nb: 2\n"),
    "two documents": (".yaml", "a: 1\n---\nb: 1\n"),
    "a tag": (".yaml", "a: !!python/object/apply:os.system [ls]\n"),
    "no number": (".yaml", "a: !!int x\n"),
    "a merge of no mapping": (".yaml", "<<: 5\n"),
    "a key that is no text": (".yaml", "? [a]\n: b\n"),
    "a key twice in JSON": (".json", '{"a": 1,\n "b": {"x": 1,\n "x": 2}}'),
    "not a number in JSON": (".json", '{"a": NaN}'),
    "no JSON": (".json", "{"),
    "nested too deep": (".json", "[" * 65 + "]" * 65),
    "no TOML": (".toml", "a = 1\nb = \n"),
    "nothing": (".toml", ""),
    "too large": (".toml", "#" * 2**20 + "#"),
    "not finite": (".toml", '[[modules]]\nname = "a"\nmetadata = {x = [nan]}\n'),
    "too many errors": (".toml", "modules = [" + "7, " * 101 + "]\n"),
}


def manifest_errors(name: str) -> list[str]:
    """All that is wrong with one of them; of many the first and the last."""
    suffix, text = MANIFESTS[name]
    found = [str(error) for error in load(f"m{suffix}", text.encode(), suffix).errors]
    return found if len(found) < 50 else [found[0], found[-1]]


# What the command line says by itself

COMMANDS = ("find", "find -c resoning", "gett", "list --path=", "register --embedded")


def command_error(line: str, place: Place) -> str:
    """What a command prints beside its answer."""
    return shown(place, run(*line.split(), DSPY_REGISTRY=str(place.folder)).stderr)


def shown(place: Place, text: str) -> str:
    """A text without what differs from run to run."""
    return text.replace(str(place.tmp), "TMP").replace(str(os.getpid()), "PID")


def provoked(call: Callable[[Place], object], place: Place) -> Exception:
    """The error that a call raises."""
    with pytest.raises((errors.RegistryError, TypeError)) as caught:
        call(place)
    return caught.value


def error_text(name: str, place: Place) -> list[str]:
    """Message and remedy of an error."""
    error = provoked(PROVOKED[name], place)
    return [shown(place, text) for text in (getattr(error, "message", str(error)), getattr(error, "remedy", ""))]


def everything(place: Place) -> dict[str, Any]:
    """All that the file pins, as it is said now."""
    return {
        "errors": {name: error_text(name, place) for name in PROVOKED},
        "modules": module_problems(),
        "manifests": {name: manifest_errors(name) for name in MANIFESTS},
        "commands": {line: command_error(line, place) for line in COMMANDS},
    }


def fits(expected: Any, said: Any) -> bool:
    """Whether texts are the expected ones, "…" standing for anything."""
    if isinstance(said, dict):
        return isinstance(expected, dict) and all(fits(expected.get(name), text) for name, text in said.items())
    if isinstance(said, list):
        return isinstance(expected, list) and len(expected) == len(said) and all(map(fits, expected, said))
    pattern = ".*".join(map(re.escape, str(expected).split("…")))
    return expected == said or re.fullmatch(pattern, said, re.DOTALL) is not None


def kept(expected: Any, said: Any) -> Any:
    """What is said now, but what is expected where that fits: "…" stays."""
    if isinstance(said, dict):
        return {name: kept((expected or {}).get(name), text) for name, text in said.items()}
    if isinstance(said, list) and isinstance(expected, list) and len(said) == len(expected):
        return list(map(kept, expected, said))
    return expected if fits(expected, said) else said


def main() -> None:
    """Write the file as things are said now: look at what git shows of it."""
    with tempfile.TemporaryDirectory() as tmp:
        said = everything(make_place(Path(tmp).resolve()))
    pinned = yaml.safe_load(WORDING.read_text(encoding="utf-8")) if WORDING.exists() else {}
    text = yaml.safe_dump(kept(pinned, said), allow_unicode=True, sort_keys=False, width=112)
    WORDING.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
