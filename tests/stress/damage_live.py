"""Files copied, replaced or overwritten while processes read and write."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dspy_registry import ModuleInfo, Registry, RegistryError, RegistryWriter
from dspy_registry.registry_store.check.checker import check
from tests.stress.apart import Apart, asked
from tests.stress.oracle import check_finds, complaint

_MODULES = tuple(f"a.M{number}" for number in range(30))
_FILES = ("data.mdb", "revision", "lock.mdb")


def _update(writer: RegistryWriter, value: int) -> int:
    return writer.register_modules([ModuleInfo(name, estimated_duration=value) for name in _MODULES])


def _made(folder: Path, last: int) -> None:
    with RegistryWriter(folder) as writer:
        for value in range(1, last + 1):
            _update(writer, value)


def _values(registry: Any) -> list[int]:
    with registry.snapshot() as snapshot:
        return sorted({snapshot.get_module(name).estimated_duration for name in _MODULES})


def _write_on(folder: Path) -> Callable[[Any, Any], None]:
    """A writer that commits what it is told, and says what it has done; None: say so and go on."""

    def work(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        with RegistryWriter(folder) as writer:
            say("ready")
            while (value := hear()) is not None:
                try:
                    say(["done", value, _update(writer, value)])
                except RegistryError as error:
                    say(["refused", value, str(error)])

    return work


def _read_on(folder: Path) -> Callable[[Any, Any], None]:
    """A reader that answers whenever it is asked: with the value, or its error."""

    def work(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        registry = Registry(folder)
        _values(registry)
        say("ready")
        while hear() is not None:
            try:
                cached = [registry.get_module(_MODULES[0]).estimated_duration for _ in range(3)]
                say([cached[-1], _values(registry), ""])
            except Exception as error:
                say([None, [], complaint(error) or f"ours: {error}"])

    return work


# A copy that is made under a writer


def _copied(folder: Path, chance: random.Random) -> list[str]:
    live, copy = folder / "live", folder / "copy"
    folder.mkdir()
    asked(lambda: _made(live, 2))
    with Apart(_write_on(live)) as writer:
        writer.hear()
        value, done = 3, 2
        copy.mkdir()
        for name in chance.sample(("data.mdb", "revision"), 2):
            with (live / name).open("rb") as source, (copy / name).open("wb") as target:
                while data := source.read(chance.choice((4096, 16384, 65536))):
                    target.write(data)
                    writer.tell(value)
                    said = writer.hear()
                    if said is None or said[0] != "done":
                        return [f"a writer beside a copy: {said}"]
                    value, done = value + 1, value
        writer.kill()

    def look() -> list[str]:
        found = check_finds(copy)
        if found:
            return []
        with Registry(copy) as registry:
            values = _values(registry)
        right = len(values) == 1 and values[0] <= done
        return [] if right else [f"check is content with a copy that holds {values}"]

    problems, wrong = asked(look)
    # Pages of two revisions may lead a reader anywhere; `check_apart` is for such files.
    return [] if wrong.startswith("it died of SIG") else [wrong] if wrong else problems


# Files replaced under readers


def _other(folder: Path) -> Path:
    other = folder / "other"
    asked(lambda: _made(other, 40))
    with_value, wrong = asked(lambda: _set(other, 99))
    assert not wrong, wrong
    assert with_value
    return other


def _set(folder: Path, value: int) -> int:
    with RegistryWriter(folder) as writer:
        return _update(writer, value)


def _replace_data(registry: Path, other: Path) -> None:
    shutil.copy(other / "data.mdb", registry / "incoming")
    (registry / "incoming").replace(registry / "data.mdb")


def _replace_folder(registry: Path, other: Path) -> None:
    registry.rename(registry.with_name("former"))
    shutil.copytree(other, registry)


def _replace_lock(registry: Path, _: Path) -> None:
    shutil.copy(registry / "lock.mdb", registry / "incoming")
    (registry / "incoming").replace(registry / "lock.mdb")


def _remove_lock(registry: Path, _: Path) -> None:
    (registry / "lock.mdb").unlink()


def _remove_revision(registry: Path, _: Path) -> None:
    (registry / "revision").unlink()


def _copy_over(registry: Path, other: Path) -> None:
    for name in _FILES:
        with (registry / name).open("r+b") as file:
            file.write((other / name).read_bytes())


_REPLACED: dict[str, tuple[Callable[[Path, Path], None], int]] = {
    "data.mdb replaced": (_replace_data, 99),
    "folder replaced": (_replace_folder, 99),
    "lock.mdb replaced": (_replace_lock, 5),
    "lock.mdb removed": (_remove_lock, 5),
    "revision removed": (_remove_revision, 5),
    "files copied over": (_copy_over, 99),
}


_UNTOLD = "folder replaced"
"""Nobody can tell a reader of it: what it keeps stays in force until it reads the files, as design.md says."""


def _replaced(folder: Path, kind: str, chance: random.Random) -> list[str]:
    """A reader reads on through it; when a writer has come it must be right, and stay so."""
    replace, expected = _REPLACED[kind]
    folder.mkdir()
    registry = folder / "registry"
    asked(lambda: _made(registry, 5))
    other = _other(folder)
    problems: list[str] = []
    with Apart(_read_on(registry)) as reader:
        reader.hear()
        reader.tell(0)
        if reader.hear() != [5, [5], ""]:
            problems.append("the reader was wrong before anything happened")
        replace(registry, other)
        if chance.random() < 0.5:
            problems += _asked_between(reader, {5, expected})
        with Apart(_write_on(registry)) as writer:
            if (said := writer.hear()) != "ready":
                return [*problems, *_refusal(said)]
            if kind == _UNTOLD:
                reader.tell(0)
                reader.hear()
            problems += _asked_after(reader, expected, "a writer opened")
            for value in (101, 102):
                writer.tell(value)
                if (said := writer.hear()) is None or said[0] != "done":
                    return [*problems, f"the writer does not go on: {said}"]
                problems += _asked_after(reader, value, f"commit {value}")
    return problems + [f"check: {found}" for found in check_finds_apart(registry)]


def _refusal(said: Any) -> list[str]:
    text = said["error"] if isinstance(said, dict) else "it died"
    return [] if "dspy_registry.registry_store.errors." in text.strip().splitlines()[-1] else [f"the writer: {text}"]


def _asked_between(reader: Apart, allowed: set[int]) -> list[str]:
    reader.tell(0)
    said = reader.hear()
    if said is None:
        return [f"a reader ended with {reader.wait()} before a writer came"]
    cached, values, error = said
    if error:
        return [] if error.startswith("ours: ") else [f"a reader before a writer came: {error}"]
    right = cached in allowed and len(values) == 1 and set(values) <= allowed
    return [] if right else [f"a reader before a writer came reads {cached}, {values}"]


def _asked_after(reader: Apart, expected: int, when: str) -> list[str]:
    reader.tell(0)
    said = reader.hear()
    if said is None:
        return [f"a reader ended with {reader.wait()} after {when}"]
    return [] if said == [expected, [expected], ""] else [f"after {when} a reader has {said}, not {expected}"]


def check_finds_apart(folder: Path) -> list[str]:
    found, wrong = asked(lambda: [str(violation) for violation in check(folder)])
    return [wrong] if wrong else found


# What only an intruder does


def _lock_zeroed(folder: Path, chance: random.Random) -> list[str]:
    """Every reader may write to lock.mdb. What is acknowledged afterwards must be there at the next opening."""
    return _acknowledged_though(folder, chance, lambda registry: _zero(registry / "lock.mdb"))


def _zero(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


def _acknowledged_though(folder: Path, chance: random.Random, act: Callable[[Path], None]) -> list[str]:
    folder.mkdir()
    registry = folder / "registry"
    asked(lambda: _made(registry, 3))
    last = 3
    with Apart(_write_on(registry)) as writer, Apart(_read_on(registry)) as reader:
        writer.hear()
        reader.hear()
        act(registry)
        for value in range(4, 4 + chance.randint(1, 6)):
            writer.tell(value)
            said = writer.hear()
            if said is None:
                break
            if said[0] == "done":
                last = value
    found, wrong = asked(lambda: _found(registry))
    if wrong:
        return [wrong]
    return [] if found == [last] else [f"{last} was acknowledged, {found} is there"]


def _found(registry: Path) -> list[int]:
    with RegistryWriter(registry), Registry(registry) as opened:
        return _values(opened)


def _lease_unlinked(folder: Path, chance: random.Random) -> list[str]:
    """Two writers commit in turn; whatever either acknowledges must be there, and read at once."""
    folder.mkdir()
    registry = folder / "registry"
    asked(lambda: _made(registry, 3))
    problems: list[str] = []
    last = 3
    with Apart(_write_on(registry)) as first, Apart(_read_on(registry)) as reader:
        first.hear()
        reader.hear()
        (registry / "writer.lock").unlink()
        with Apart(_write_on(registry)) as second:
            writers = [first] + [second] * (second.hear() == "ready")
            for value in range(4, 12):
                writer = chance.choice(writers)
                writer.tell(value)
                said = writer.hear()
                if said is not None and said[0] == "done":
                    last = value
                    problems += _asked_after(reader, last, f"commit {value} of one of two writers")
    found, wrong = asked(lambda: _found(registry))
    if wrong or found != [last]:
        problems.append(wrong or f"{last} was acknowledged, {found} is there")
    return problems[:3]


_OTHERS: dict[str, Callable[[Path, random.Random], list[str]]] = {
    "copied under a writer": _copied,
    "lock.mdb zeroed": _lock_zeroed,
    "writer.lock unlinked": _lease_unlinked,
}
LIVE = (*_REPLACED, *_OTHERS, "copied under a writer")


def live_case(folder: Path, kind: str, chance: random.Random) -> list[str]:
    """The problems of one such case."""
    try:
        if kind in _REPLACED:
            return _replaced(folder, kind, chance)
        return _OTHERS[kind](folder, chance)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
