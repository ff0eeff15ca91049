"""What surrounds the registry: clocks, users, namespaces, mounts, small disks, links where files should be."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from dspy_registry import ModuleInfo, Registry, RegistryError, RegistryWriter, WriterClient
from dspy_registry.registry_store.backup import backup
from dspy_registry.writer.daemon.lifecycle import Daemon
from tests.stress.apart import Apart, asked
from tests.stress.faults import Fault
from tests.stress.oracle import attempt, check_finds, complaint
from tests.stress.scenes import NotHereError, tries_of
from tests.support import ROOT
from tests.support.usage_helpers import MINUTE, NOW, batches, merge

_NOBODY = 65534
_YEAR = 365 * 24 * 60 * MINUTE


def _need_root() -> None:
    if os.geteuid():
        raise NotHereError("only root may do this")


def _as_nobody(work: Callable[[], Any]) -> tuple[Any, str]:
    def without_rights() -> Any:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        return work()

    return asked(without_rights)


def _said(work: Callable[[], Any]) -> list[str]:
    """The kind of the error that `work` raises, what is wrong with that, and its text; or ["done", "", ""]."""
    try:
        work()
    except Exception as error:
        return [type(error).__name__, complaint(error), str(error)]
    return ["done", "", ""]


def _refused_by_name(what: str, told: tuple[Any, str], *kinds: str) -> list[str]:
    said, wrong = told
    if wrong:
        return [f"{what}: {wrong}"]
    problems = [f"{what}: {said[1]}"] if said[1] else []
    if kinds and said[0] not in kinds:
        problems.append(f"{what}: {said[0]} ({said[2]}) where {' or '.join(kinds)} should be")
    return problems


# Clocks


def _clock(folder: Path, chance: random.Random) -> list[str]:
    """A clock years ahead, then right again: the calls of now are counted in the minutes of now."""
    ahead = NOW + chance.choice((1, 10, 40)) * _YEAR + chance.randrange(_YEAR)
    problems: list[str] = []
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        for now, count in ((NOW, 3), (ahead, 2), (NOW + MINUTE, 4), (NOW - _YEAR, 1), (NOW + 2 * MINUTE, 5)):
            calls = [("dspy.Predict", 5.0)] * count
            attempt("usage", lambda now=now, calls=calls: merge(writer, batches(calls, now=now), now=now), problems)
            usage = registry.usage("dspy.Predict")
            minutes = usage.calls_by_minute(now / 1000)
            if minutes[-1] != count:
                problems.append(f"{count} calls at {now - NOW:+,} ms, this minute counts {minutes[-1]}")
        if registry.usage("dspy.Predict").calls != 15:
            problems.append(f"15 calls were made, {registry.usage('dspy.Predict').calls} are counted")
    return problems + check_finds(folder)


# Users


def _reachable(folder: Path) -> None:
    for path in folder.parents:
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(0o755)
            if path.name.startswith("stress-"):
                break


def _other_users(folder: Path, _: random.Random) -> list[str]:
    """Another user gets nothing of a new registry, and is told so; the daemon refuses him by what the kernel says."""
    _need_root()
    _reachable(folder)
    problems: list[str] = []
    with Apart(lambda say, _: Daemon(folder).run(lambda _: say("ready"))) as daemon:
        daemon.hear()
        problems += _refused_by_name(
            "a reader", _as_nobody(lambda: _said(lambda: Registry(folder))), "StorePermissionError"
        )
        problems += _refused_by_name(
            "a writer", _as_nobody(lambda: _said(lambda: RegistryWriter(folder))), "StorePermissionError"
        )
        folder.chmod(0o777)
        (folder / "writer.sock").chmod(0o777)
        told = _as_nobody(lambda: _said(lambda: _register(folder)))
        problems += _refused_by_name("a client", told, "StorePermissionError", "WriterUnavailableError")
        folder.chmod(0o700)
        if asked(lambda: _said(lambda: _register(folder)))[0][0] != "done":
            problems.append("the daemon does not serve its own user any more")
    return problems + check_finds(folder)


def _register(folder: Path) -> None:
    with WriterClient(folder, timeout=30.0) as client:
        client.register_module(ModuleInfo("a.B"))


def _links(folder: Path, chance: random.Random) -> list[str]:
    """Links in the place of the folder's files, made by whoever owns it: root's writer overwrites no target."""
    _need_root()
    _reachable(folder)
    folder.mkdir(mode=0o755)
    os.chown(folder, _NOBODY, _NOBODY)
    target = folder.parent / "precious"
    target.write_text("precious" * 1000)
    before = (target.read_bytes(), target.stat().st_mode)
    name = chance.choice(("writer.lock", "lock.mdb", "data.mdb", "revision", "writer.sock"))
    _, wrong = _as_nobody(lambda: (folder / name).symlink_to(target))
    told = asked(lambda: _said(lambda: RegistryWriter(folder).close()))
    problems = _refused_by_name(f"a writer where {name} is a link", told)
    if (target.read_bytes(), target.stat().st_mode) != before:
        problems.append(f"the target of the link {name} was changed")
    return problems + [wrong] * bool(wrong)


def _foreign(folder: Path, _: random.Random) -> list[str]:
    """Another program's LMDB environment is left as it is."""
    folder.mkdir()
    with lmdb.open(str(folder), max_dbs=4) as env, env.begin(write=True) as txn:
        txn.put(b"their", b"data")
        txn.put(b"key", b"value", db=env.open_db(b"theirs", txn))
    before = (folder / "data.mdb").read_bytes()
    told = asked(lambda: _said(lambda: RegistryWriter(folder).close()))
    problems = _refused_by_name("a writer on another program's LMDB", told, "DamagedStoreError")
    if (folder / "data.mdb").read_bytes() != before:
        problems.append("another program's LMDB was changed")
    return problems


# Mounts


@contextmanager
def _mounted(place: Path, *arguments: str) -> Iterator[None]:
    _need_root()
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, check=False)
    if done.returncode:
        raise NotHereError(f"cannot mount: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _read_only(folder: Path, _: random.Random) -> list[str]:
    """Readers and writers on a read-only mount are told so; nothing is read unlocked."""
    asked(lambda: RegistryWriter(folder).close())
    place = folder.parent / "mounted"
    with _mounted(place, "--bind", str(folder)):
        done = subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], capture_output=True, check=False)
        if done.returncode:
            raise NotHereError("cannot mount read-only")
        problems = _refused_by_name("a reader", asked(lambda: _said(lambda: Registry(place))), "StorePermissionError")
        told = asked(lambda: _said(lambda: RegistryWriter(place)))
        problems += _refused_by_name("a writer", told, "StorePermissionError", "StoreError")
        told = asked(lambda: _said(lambda: backup(place / "backup", folder)))
        problems += _refused_by_name("a backup onto it", told, "StoreError", "StorePermissionError")
    return problems + check_finds(folder)


def _small_disk(folder: Path, chance: random.Random) -> list[str]:
    """A disk that fills up: told by name, read on, and written again when there is room."""
    place = folder.parent / "disk"
    with _mounted(place, "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        told, wrong = asked(lambda: _filled(place / "registry", place / "ballast", chance))
    return [wrong] if wrong else told


def _filled(folder: Path, ballast: Path, chance: random.Random) -> list[str]:
    problems: list[str] = []
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        room = os.statvfs(folder)
        ballast.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - chance.randrange(200_000))))
        last, full = 0, 0
        for value in range(1, 400):
            info = ModuleInfo(
                "a.B", estimated_duration=value, metadata={"text": f"{value:04}" * chance.randrange(5000)}
            )
            try:
                writer.register_module(info)
                last = value
            except RegistryError as error:
                problems += [wrong] if (wrong := complaint(error)) else []
                full += 1
                found = registry.get("a.B")
                if (found.estimated_duration if found else 0) != last:
                    problems.append(f"on a full disk {found} is read, {last} was acknowledged")
            if full == 5 or problems:
                break
        ballast.unlink()
        again = ModuleInfo("a.B", estimated_duration=999)
        if attempt("with room again", lambda: writer.register_module(again), problems) is None:
            # A write that was cut short may have been an error of the disk: then a new writer has to come.
            writer.close()
            with RegistryWriter(folder) as next_writer:
                next_writer.register_module(again)
        if registry["a.B"].estimated_duration != 999:
            problems.append("with room again it reads something else")
    return problems + check_finds(folder)


# Namespaces


_IN_NAMESPACE = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from tests.stress.environment import {function}
print(json.dumps({function}(sys.argv[2])))
"""


def _in_namespace(flags: list[str], function: str, folder: Path) -> tuple[Any, str]:
    """What a function of this module returns in new namespaces, where its process is the first one."""
    code = _IN_NAMESPACE.format(function=function)
    command = ["unshare", *flags, sys.executable, "-c", code, str(ROOT), str(folder)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout), ""
    if "unshare" in done.stderr:
        raise NotHereError(done.stderr.strip())
    return None, f"it ended with {done.returncode}: {done.stderr[-300:]}"


def read_in_namespace(folder: str) -> list[Any]:
    """For `_in_namespace`: the value read, or the error."""
    try:
        with Registry(folder) as registry, registry.snapshot() as snapshot:
            return ["read", snapshot["a.B"].estimated_duration, os.getpid()]
    except Exception as error:
        return ["refused", complaint(error), str(error)]


def _namespaces(folder: Path, chance: random.Random) -> list[str]:
    """Processes in other namespaces read right, or are told; where both are process 1, too."""
    _need_root()
    flags = chance.choice(
        (["--pid", "--fork"], ["--net"], ["--ipc", "--uts"], ["--pid", "--fork", "--mount-proc"], ["--mount"])
    )
    problems: list[str] = []
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        for value in range(1, 4):
            writer.register_module(ModuleInfo("a.B", estimated_duration=value))
            said, wrong = _in_namespace(flags, "read_in_namespace", folder)
            if wrong:
                problems.append(f"{flags}: {wrong}")
            elif said[0] == "refused":
                problems += [f"{flags}: {said[1]}"] if said[1] else []
            elif said[1] != value:
                problems.append(f"{flags}: {said[1]} is read, {value} was acknowledged")
        if registry["a.B"].estimated_duration != 3:
            problems.append(f"{flags}: afterwards the others read something else")
    return problems + check_finds(folder)


# Little address space


def _little_space(folder: Path, chance: random.Random) -> list[str]:
    asked(lambda: RegistryWriter(folder).close())

    def work() -> list[str]:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + chance.choice((50, 300, 1000, 3000)) * (1 << 20),) * 2)
        return _said(lambda: Registry(folder).get_module("dspy.Predict"))

    return _refused_by_name("a reader", asked(work), "done", "StoreError") + check_finds(folder)


# Moved, gone


def _taken_away(folder: Path, chance: random.Random) -> list[str]:
    """The folder is moved or removed under a daemon: it ends and says why, and acknowledges nothing that is lost."""
    problems: list[str] = []
    with Apart(lambda say, _: Daemon(folder).run(lambda _: say("ready"))) as daemon:
        daemon.hear()
        _register(folder)
        if chance.random() < 0.5:
            folder.rename(folder.with_name("elsewhere"))
        else:
            shutil.rmtree(folder)
        told = asked(lambda: _said(lambda: _register(folder)))
        problems += _refused_by_name("a client", told)
        if told[0] and told[0][0] == "done":
            problems.append("a change was acknowledged in a folder that is gone")
        daemon.signal(15)
        said = daemon.heard()
        if daemon.wait() < 0:
            problems.append(f"the daemon died: {said}")
    return problems


FAULT = Fault(
    "environment",
    "clocks, other users, links, foreign LMDB, read-only mounts, full disks, namespaces, address space, folders gone",
    "scenes",
    180,
    9,
    tries_of(
        {
            "clock": _clock,
            "other users": _other_users,
            "links": _links,
            "another program's LMDB": _foreign,
            "read-only mount": _read_only,
            "full disk": _small_disk,
            "namespaces": _namespaces,
            "little address space": _little_space,
            "folder taken away": _taken_away,
        }
    ),
)
