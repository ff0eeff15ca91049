"""What a process does to the files in a folder, in order: recorded with strace, byte by byte.

Stores through a map are no system calls. Whoever is recorded tells of them by writing them to the file `marks`, in the
form of `Marks`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.stress.apart import Apart

_CALLS = (
    "openat,open,creat,close,lseek,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,"
    "fsync,fdatasync,msync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,"
    "sendfile,copy_file_range"
)
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+|\?)(.*)$")
_UNFINISHED = re.compile(r"^(\d+) +(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$")
_DESCRIPTOR = re.compile(r"^(\d+)<([^>]*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
MARKS = "marks"


class Event(NamedTuple):
    """`kind`: write, size, sync, create, rename, unlink, mkdir, rmdir, mark. `path` is relative to the folder."""

    kind: str
    path: str
    at: int = 0
    data: bytes = b""
    to: str = ""
    is_durable: bool = False
    told: Any = None


def can_record() -> bool:
    """Whether strace is there and may trace."""
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-o", os.devnull, "true"], check=False).returncode == 0


class Marks:
    """For the recorded process: what was acknowledged, and what was stored through the map of the revision file."""

    def __init__(self, folder: Path, revision_file: Path) -> None:
        self._file = os.open(folder / MARKS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._folder = folder
        self._revision_file = revision_file
        self._inode = 0
        self._last = b""
        self._tell({"inodes": self._inodes()})

    def stores(self, *_: object) -> None:
        """Tell of the sectors of the revision file that have changed."""
        try:
            content = self._revision_file.read_bytes()
        except FileNotFoundError:
            return
        inode = self._revision_file.stat().st_ino
        is_new, self._inode = inode != self._inode, inode
        changed = [
            [at, content[at : at + 512].hex()]
            for at in range(0, len(content), 512)
            if content[at : at + 512] != self._last[at : at + 512] and (at == 0 or not is_new)
        ]
        self._last = content
        if changed:
            path = str(self._revision_file.relative_to(self._folder))
            self._tell({"stores": changed, "path": path, "inodes": self._inodes()})

    def acknowledged(self, step: int) -> None:
        self.stores()
        self._tell({"acknowledged": step, "inodes": self._inodes()})

    def _inodes(self) -> dict[str, list[int]]:
        found = {}
        for path in self._folder.rglob("*"):
            status = path.stat()
            found[str(path.relative_to(self._folder))] = [status.st_dev, status.st_ino]
        return found

    def _tell(self, message: Any) -> None:
        os.write(self._file, json.dumps(message).encode())


def record(folder: Path, work: Callable[[], Any]) -> tuple[list[Event], list[Any]]:
    """Run `work` in a forked child; what it did beneath `folder`, and what it said."""
    log = folder.parent / f"{folder.name}.strace"
    before = {str(path.relative_to(folder)) for path in folder.rglob("*")}

    def gated(say: Callable[[Any], None], hear: Callable[[], Any]) -> None:
        hear()
        say({"answer": work()})

    options = ["-e", f"trace={_CALLS}", "-y", "-xx", "-s", "100000000", "-o", str(log)]
    with Apart(gated) as child, attach(child.pid, options):
        child.tell()
        said = child.heard()
        status = child.wait()
    if status:
        raise RuntimeError(f"the recorded process ended with {status}: {said}")
    events = list(_events(log, _Parser(folder, before)))
    log.unlink()
    return events, said[-1]["answer"]


def attach(pid: int, options: list[str]) -> subprocess.Popen[str]:
    """strace on a running process, once it is attached."""
    tracer = subprocess.Popen(
        ["strace", "-f", *options, "-p", str(pid)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert tracer.stderr is not None
    line = tracer.stderr.readline()  # it says that it is attached, or why not
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text(encoding="ascii"):
        if tracer.poll() is not None:
            raise RuntimeError(f"strace did not attach: {line}")
        time.sleep(0.001)
    return tracer


# From strace's lines


def _decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _lines(log: Path) -> Iterator[str]:
    """Whole calls, each where it ended."""
    begun: dict[str, str] = {}
    with log.open(encoding="ascii", errors="replace") as file:
        for line in file:
            line = line.rstrip("\n")
            if found := _UNFINISHED.match(line):
                begun[found[1]] = found[2]
            elif found := _RESUMED.match(line):
                yield f"{found[1]} {begun.pop(found[1], '')}{found[2]}"
            else:
                yield line


def _events(log: Path, parser: _Parser) -> Iterator[Event]:
    for line in _lines(log):
        if (found := _LINE.match(line)) and found[4] != "?" and int(found[4]) >= 0:
            yield from parser.call(found[2], found[3], int(found[4]))


class _Parser:
    """Follows descriptors: where each stands, and whether its writes are durable when they return."""

    def __init__(self, folder: Path, known: set[str]) -> None:
        self._folder = str(folder)
        self._known = known
        self._durable: set[int] = set()
        self._at: dict[int, int] = {}

    def call(self, name: str, arguments: str, result: int) -> Iterator[Event]:
        if name in ("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"):
            yield from self._named(name, arguments)
        elif name in ("openat", "open", "creat"):
            yield from self._opened(arguments, result)
        elif found := _DESCRIPTOR.match(arguments):
            path = self._relative(os.fsdecode(_decoded(found[2])))
            if path is not None:
                yield from self._on_file(name, int(found[1]), path, arguments, result)

    def _relative(self, path: str) -> str | None:
        if path == self._folder:
            return ""
        if not path.startswith(f"{self._folder}/") or path.endswith(" (deleted)"):
            return None
        return path[len(self._folder) + 1 :]

    def _named(self, name: str, arguments: str) -> Iterator[Event]:
        # A path that is relative to a descriptor (rmtree's) is joined to it.
        bases = [os.fsdecode(_decoded(text)) for text in re.findall(r"<((?:\\x[0-9a-f]{2})*)>", arguments)]
        texts = [os.fsdecode(_decoded(text)) for text in _TEXT.findall(arguments)]
        base = bases[0] if bases else ""
        paths = [self._relative(str(Path(base) / text)) for text in texts]
        if not paths or paths[0] is None:
            return
        if name.startswith("rename"):
            assert paths[1] is not None
            self._known.discard(paths[0])
            self._known.add(paths[1])
            yield Event("rename", paths[0], to=paths[1])
        elif name.startswith("mkdir"):
            yield Event("mkdir", paths[0])
        else:
            self._known.discard(paths[0])
            yield Event("rmdir" if name == "rmdir" or "AT_REMOVEDIR" in arguments else "unlink", paths[0])

    def _opened(self, arguments: str, descriptor: int) -> Iterator[Event]:
        texts = _TEXT.findall(arguments)
        bases = re.findall(r"<((?:\\x[0-9a-f]{2})*)>", arguments)
        base = os.fsdecode(_decoded(bases[0])) if bases else ""
        path = self._relative(str(Path(base) / os.fsdecode(_decoded(texts[0])))) if texts else None
        flags = arguments.rsplit('"', 1)[-1]
        self._at[descriptor] = 0
        self._durable.discard(descriptor)
        if "O_DSYNC" in flags or "O_SYNC" in flags:
            self._durable.add(descriptor)
        if path is None or "O_DIRECTORY" in flags:
            return
        if "O_CREAT" in flags and path not in self._known:
            self._known.add(path)
            yield Event("create", path)
        elif "O_TRUNC" in flags:
            yield Event("size", path, 0)

    def _on_file(self, name: str, descriptor: int, path: str, arguments: str, result: int) -> Iterator[Event]:
        if name in ("fsync", "fdatasync", "msync"):
            yield Event("sync", path)
        elif name == "lseek":
            self._at[descriptor] = result
        elif name in ("sendfile", "copy_file_range"):
            raise RuntimeError(f"{name} does not tell what it wrote")
        elif name in ("write", "writev"):
            at = self._at.get(descriptor, 0)
            self._at[descriptor] = at + result
            yield self._written(descriptor, path, at, arguments, result)
        elif name in ("pwrite64", "pwritev", "pwritev2"):
            numbers = re.findall(r"(\d+)", arguments.rsplit('"', 1)[-1])
            yield self._written(descriptor, path, int(numbers[-1]), arguments, result)
        elif name == "ftruncate":
            yield Event("size", path, int(arguments.rsplit(",", 1)[1]))
        elif name == "fallocate":
            _, _, offset, length = arguments.split(", ")
            yield Event("grow", path, int(offset) + int(length))

    def _written(self, descriptor: int, path: str, at: int, arguments: str, result: int) -> Event:
        data = b"".join(map(_decoded, _TEXT.findall(arguments)))[:result]
        if path == MARKS:
            return Event("mark", path, told=json.loads(data))
        return Event("write", path, at, data, is_durable=descriptor in self._durable)
