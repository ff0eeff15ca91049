"""Input of every kind: it is taken or refused by name, and nothing worse."""

from __future__ import annotations

import io
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from dspy_registry import ModuleInfo, Registry, RegistryError, RegistryWriter
from dspy_registry.cli.program import main
from dspy_registry.registry_store.protocol import ReadStatus, Status, frame
from dspy_registry.writer.daemon.lifecycle import Daemon
from dspy_registry.writer.manifests.attach import validate_tree
from tests.stress.apart import Apart, asked
from tests.stress.faults import Case, Fault, Plan
from tests.stress.input_decoders import DECODERS, REQUESTS, Decoder, changed, sealed
from tests.stress.oracle import check_finds
from tests.support.daemon_process import Peer

_AT_ONCE = 1_000
_COMMANDS_AT_ONCE = 20
_TREES_AT_ONCE = 10

_STRANGE = (
    "",
    " ",
    "\0",
    "\ud800",
    "a" * 300,
    "é́",
    "dspy.Predict",
    "predict",
    "a.b\n",
    "-x",
    "--json",
    "@",
    "a@b",
    "..",
    "\U0001d518",
)


def _decoded(decoder: Decoder, chance: random.Random) -> list[str]:
    for _ in range(_AT_ONCE):
        data = changed(chance.choice(decoder.samples), chance)
        if decoder.is_sealed:
            data = sealed(data)
        try:
            decoder.read(data)
        except decoder.allowed as error:
            if isinstance(error, RegistryError) and not str(error):
                return [f"{decoder.name}: an error that says nothing for {data.hex()}"]
        except BaseException as error:
            return [f"{decoder.name}: {type(error).__name__}: {error} for {data.hex()}"]
    return []


# What is asked of a registry


def _asked(folder: Path, chance: random.Random) -> list[str]:
    def text() -> Any:
        kind = chance.randrange(5)
        if kind == 0:
            return chance.choice(_STRANGE)
        if kind == 1:
            return chance.choice((None, 7, b"x", 1.5, ("a",), object()))
        return "".join(chr(chance.choice((chance.randrange(128), chance.randrange(0x110000)))) for _ in range(8))

    with Registry(folder) as registry:
        of_names: tuple[Callable[[Any], Any], ...] = (
            registry.get_module,
            registry.get,
            registry.__contains__,
            registry.describe,
            registry.history,
            registry.usage,
            registry.has_native,
            registry.get_pool_type,
        )
        of_words: tuple[Callable[[Any], Any], ...] = (
            registry.find_by_capability,
            registry.find_by_category,
            lambda text: registry.find(capabilities=(text,), category=text),
            lambda text: registry.estimate_duration("dspy.Predict", text),
        )
        for _ in range(_AT_ONCE):
            asked_for = text()
            question = chance.choice((*of_names, *of_words) if isinstance(asked_for, str) else of_names)
            try:
                question(asked_for)
            except (RegistryError, TypeError):
                pass
            except BaseException as error:
                called = getattr(question, "__name__", "find")
                return [f"{called}({asked_for!r}): {type(error).__name__}: {error}"]
        return [] if len(registry) == 7 else ["questions have changed the registry"]


# The command line


def _arguments(chance: random.Random, folder: Path) -> list[str]:
    commands = (
        "get",
        "find",
        "list",
        "route",
        "history",
        "unregister",
        "alias",
        "stats",
        "status",
        "check",
        "rollback",
    )
    command = chance.choice((*commands, "register", "manifests", "schema", "backup", chance.choice(_STRANGE)))
    options = (
        "--json",
        "--capability",
        "--category",
        "--input-size",
        "--basis",
        "--to",
        "--yes",
        "--limit",
        "-h",
        "--",
    )
    words = [*options, *_STRANGE, "1", "-1", "1e999", "set", "remove", str(folder), "/dev/null", "/"]
    rest = [chance.choice(words) for _ in range(chance.randrange(5))]
    # An argument of a process holds no zero byte, and is what os.fsdecode makes of bytes.
    arguments = [command, *rest, "--path", str(folder)]
    return [text.replace("\0", "").encode("utf-8", "replace").decode() for text in arguments]


def _commanded(folder: Path, chance: random.Random) -> list[str]:
    os.chdir(folder.parent)
    for _ in range(_COMMANDS_AT_ONCE):
        arguments = _arguments(chance, folder)
        sys.stdin = io.StringIO(chance.choice(("", "{", '{"name": "a.B"}', "\0")))
        out, told = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        try:
            with redirect_stdout(out), redirect_stderr(told):
                main(arguments)
        except SystemExit as ended:
            status = ended.code
        except BaseException as error:
            return [f"{arguments}: {type(error).__name__}: {error}"]
        if status not in (0, 1, 2, None):
            return [f"{arguments}: exit status {status}"]
        told.flush()
        text = told.buffer.getvalue().decode()
        if "Traceback" in text:
            return [f"{arguments}: {text[-500:]}"]
    return []


# Links and folders of manifests


def _linked(folder: Path, chance: random.Random) -> list[str]:
    for _ in range(_TREES_AT_ONCE):
        shutil.rmtree(folder, ignore_errors=True)
        _grow(folder, chance)
        try:
            validate_tree(folder)
        except RegistryError:
            pass
        except BaseException as error:
            return [f"a tree of manifests: {type(error).__name__}: {error}"]
    return []


def _grow(folder: Path, chance: random.Random) -> None:
    folder.mkdir(parents=True)
    folders = [folder]
    for number in range(chance.randrange(2, 14)):
        place = chance.choice(folders) / chance.choice(
            (f"n{number}", f"n{number}.toml", f"n{number}.yaml", f".h{number}")
        )
        kind = chance.randrange(6)
        if kind < 2:
            place.mkdir()
            folders.append(place)
        elif kind == 2:
            place.write_bytes(changed(b'[[modules]]\nname = "a.B"\n', chance))
        elif kind == 3:
            os.mkfifo(place)
        else:
            outside = (".", "..", place.name, "missing", "/dev/zero", "/proc/1/cwd", str(folder), "/etc/ssl")
            place.symlink_to(chance.choice((*outside, chance.choice(folders))))


# Packages that discovery imports

_SOURCE = b"""
import dspy, os, sys
class First(dspy.Predict):
    "Answers."
    def __init__(self, tools, k=3): ...
class Second(dspy.Module): ...
__all__ = ["First", "Second", "Missing", 7]
print("noise" * 100)
"""
_HARM = (
    b"raise SystemExit",
    b"os._exit(3)",
    b"os.kill(os.getpid(), 11)",
    b"os.close(1)",
    b"sys.modules[__name__] = 5",
    b"def f(): f()\nf()",
    b"os.fork()",
    b"First.__name__ = 'x' * 10_000",
    b"First.__doc__ = '\\ud800\\0'",
)


def _discovered(folder: Path, chance: random.Random) -> list[str]:
    """Packages with all kinds of source: each is in the report, as what it has or as why it failed."""
    from dspy_registry.writer.discovery.report import discover

    names = [f"harm{number}" for number in range(4)]
    for name in names:
        lines = changed(_SOURCE, chance) if chance.random() < 0.5 else _SOURCE
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_bytes(lines + chance.choice((b"", chance.choice(_HARM))))
    os.environ["PYTHONPATH"] = str(folder)
    report = discover([*names, chance.choice(_STRANGE).replace("\0", "?")], timeout=60.0)
    told = {failure.package.partition(".")[0] for failure in report.failures} | set(report.probed)
    return [f"nothing is said of {name}" for name in names if name not in told]


def _tries(plan: Plan) -> Iterator[Case]:
    registry = plan.room / "registry"
    _, wrong = asked(lambda: _made(registry))
    assert not wrong, wrong
    works: dict[str, tuple[Callable[[random.Random], list[str]], int]] = {
        decoder.name: (lambda chance, decoder=decoder: _decoded(decoder, chance), _AT_ONCE) for decoder in DECODERS
    }
    works["questions"] = (lambda chance: _asked(registry, chance), _AT_ONCE)
    works["command line"] = (lambda chance: _commanded(_copy(registry, plan), chance), _COMMANDS_AT_ONCE)
    works["trees of manifests"] = (lambda chance: _linked(plan.room / "tree" / "m", chance), _TREES_AT_ONCE)
    works["packages"] = (lambda chance: _discovered(plan.folder("packages"), chance), 1)
    names = list(works)
    for key in plan.cases():
        name = names[int(key) % len(names)]
        work, tries = works[name]
        problems, wrong = asked(partial(work, plan.chance(key)))
        yield Case(key, tuple([f"{name}: {wrong}"] if wrong else problems), f"times {tries:,} {name}", tries=tries)


def _made(folder: Path) -> None:
    with RegistryWriter(folder) as writer:
        writer.register_module(ModuleInfo("acme.m"))


def _copy(registry: Path, plan: Plan) -> Path:
    copy = plan.folder("commanded") / "registry"
    shutil.copytree(registry, copy)
    return copy


FAULT = Fault(
    "inputs",
    "decoders of protocol, records, changes, usage; fields, manifests, links, questions, command line",
    "inputs",
    1_000_000,
    20_000,
    _tries,
)


# Live frames

_FRAMES_AT_ONCE = 50


def _hostile(folder: Path, chance: random.Random) -> list[str]:
    """One connection after another sends a changed message; the daemon answers or hangs up, and serves the next."""
    for _ in range(_FRAMES_AT_ONCE):
        payload = changed(chance.choice(REQUESTS), chance)
        length = len(payload) if chance.random() < 0.9 else chance.choice((0, 1, len(payload) + 1, 2**32 - 1))
        with Peer(folder) as peer:
            if chance.random() < 0.95:
                peer.greet(chance.randbytes(16))
            try:
                peer.socket.sendall(length.to_bytes(4, "big") + payload + frame(ReadStatus(2)))
                if length == len(payload):
                    while not isinstance(answer := peer.receive(), Status) and answer is not None:
                        pass
            except (ConnectionError, RegistryError):
                pass
    return []


def _live(plan: Plan) -> Iterator[Case]:
    folder = plan.room / "registry"
    with Apart(lambda say, _: Daemon(folder).run(lambda _: say("ready"))) as daemon:
        if daemon.hear() != "ready":
            yield Case("start", ("the daemon does not start",))
            return
        for key in plan.cases():
            problems, wrong = asked(partial(_hostile, folder, plan.chance(key)))
            found = [wrong] if wrong else list(problems)
            told, wrong = asked(lambda: _status(folder))
            if wrong or told != daemon.pid:
                found.append(f"the daemon is not what it was: {wrong or told}")
            yield Case(key, tuple(found), tries=_FRAMES_AT_ONCE)
            if int(key) % 40 == 39:
                found, wrong = asked(lambda: check_finds(folder))
                if found or wrong:
                    yield Case(f"{key} check", tuple([wrong] if wrong else found), tries=0)


def _status(folder: Path) -> int:
    from dspy_registry import WriterClient

    with WriterClient(folder, timeout=60.0) as client:
        return client.status().pid


LIVE = Fault("live_frames", "changed messages to a running daemon, one connection each", "frames", 25_000, 500, _live)
