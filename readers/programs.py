"""Compiled programs by name, as a worker runs them: each rebuilt when its version moves, the old one serving meanwhile.

A look-up resolves the name, as `Registry.resolve` does, and finds the program of that version in a dict. A version that
is not there yet is built once, by one thread, however many ask. A process that has served this name before goes on
with the program that it has, and begins to build the next one when it is committed, or at the latest when it is asked.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from dspy_registry.readers.cache import Cache
from dspy_registry.readers.program_bell import Follower
from dspy_registry.readers.published import names_with_programs, read_document
from dspy_registry.readers.rebuild import checked_packages, rebuild
from dspy_registry.readers.registry import Registry
from dspy_registry.registry_store.errors import NoProgramError, ProgramRefusedError, RegistryError, StoreClosedError
from dspy_registry.registry_store.selection import Resolved

_MOST_HELD: Final = 17
"""Programs of one module: a label names at most 16 versions, and one more is on its way."""

_TRY_AGAIN: Final = 5.0  # seconds after a build that failed for a reason that may pass
_log = logging.getLogger("dspy_registry")


class ProgramStatus(msgspec.Struct, frozen=True):
    """One name that was asked for: `serving` is the version that it gives, `wanted` the one that it means.

    `serving` is 0 when there is no program yet. `problem` says why the wanted one cannot be had; empty: nothing is
    wrong. `is_building` says whether it is being built. `wanted` is 0 when the name means nothing any longer.
    """

    name: str
    serving: int
    wanted: int
    problem: str
    is_building: bool


class _Build:
    """A program that is being built by one thread. `error` is why it failed, once `done` is set."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None


class _Failure:
    """A build that failed. It is tried again at `again`, of the monotonic clock; None: nothing can change it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        is_final = isinstance(error, ProgramRefusedError | NoProgramError)
        self.again = None if is_final else time.monotonic() + _TRY_AGAIN

    @property
    def is_due(self) -> bool:
        return self.again is not None and time.monotonic() >= self.again


class Programs(Mapping[str, Any]):
    """The compiled programs of a registry, by what a look-up takes: `acme.Qa`, `acme.Qa@3`, `acme.Qa@live`.

    `allow` are the packages whose code may be imported to build a program; nothing else is imported. `names` are what
    iteration gives, and so what a Router chooses from, as ("acme.Fast@live", "acme.Deep@live"). None: the full names of
    modules whose version in force has a program; finding them reads every record after each change. The first look-up
    of a name builds its program and waits for it. When the version moves, a thread builds the new one at once, and the
    old program is given until it is ready. A program that cannot be built leaves the old one in service, and `status`
    and the log say so. All who ask get the same object: do not change it.

    Threads may share it, and it works in a forked child, which has all that was built before. `[]` and `get` raise
    UnknownModuleError, UnknownVersionError, UnknownLabelError and NoProgramError, which are KeyErrors, and
    ProgramRefusedError for a program that does not fit this process, if no older one serves. A copy is the same object.
    """

    def __init__(self, registry: Registry, allow: Sequence[str], names: Sequence[str] | None = None) -> None:
        self._registry = registry
        self._resolve = registry.resolve
        self.allow = checked_packages(allow)
        self._names = None if names is None else tuple(names)
        self._found: tuple[int, tuple[str, ...]] = -1, ()  # the revision, and what iteration gives there
        self._follower = Follower(self)
        self._forget()
        _all.add(self)

    def _forget(self) -> None:
        self._begun_on: Cache | None = self._registry._cache  # another one: a writer has opened the registry since
        self._of = self._registry._file  # another identity: it was restored, and versions begin again
        self._inherited: Cache | None = None  # in a forked child that has not looked up anything: the parent's
        self._ready: dict[Resolved, Any] = {}
        self._serving: dict[str, Resolved | None] = {}  # by name asked for; None: nothing yet
        self._failed: dict[Resolved, _Failure] = {}
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._builds: dict[Resolved, _Build] = {}

    def _begin_in_child(self) -> None:
        """The threads that built and listened are the parent's. The next look-up goes to `_find`, and listens again."""
        self._begin()
        self._follower.forget()
        if self._begun_on is not None:
            self._begun_on, self._inherited = None, self._begun_on

    def __repr__(self) -> str:
        return f"Programs({self._registry!r}, allow={self.allow!r}, built={len(self._ready)})"

    __eq__ = object.__eq__  # a comparison of mappings would build every program
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> Any:
        return self._program(name, None)

    def get(self, name: str, default: Any = None, *, key: str | None = None) -> Any:
        """The program of a name, for a key of a weighted label; `default` if there is no such name or no program.

        `key` None: the version with most weight. A program that is refused raises ProgramRefusedError all the same.
        """
        try:
            return self._program(name, key)
        except KeyError:
            return default

    def _program(self, name: str, key: str | None) -> Any:
        resolved = self._resolve(name, key=key)
        try:
            if self._registry._cache is self._begun_on:
                return self._ready[resolved]
        except KeyError:
            pass
        return self._find(name, resolved)

    def serving(self, name: str) -> tuple[Any, int]:
        """The program of a name, and its version: an older one than the name means while that one is built.

        Raises as `[]` does.
        """
        program, wanted = self[name], self._resolve(name)
        if self._ready.get(wanted) is program:
            return program, wanted.version
        return program, next((each.version for each, held in list(self._ready.items()) if held is program), 0)

    def status(self) -> list[ProgramStatus]:
        """What each name that was asked for gives, and what is wrong with it. A copy."""
        return [self._status(name) for name in sorted(self._serving)]

    def __contains__(self, name: object) -> bool:
        """Whether a name means a version with a program. Builds nothing."""
        if not isinstance(name, str):
            return False
        try:
            resolved = self._resolve(name)
            return bool(self._registry.describe(str(resolved)).provenance.program)
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._names if self._names is not None else self._with_programs())

    def __len__(self) -> int:
        return len(self._names if self._names is not None else self._with_programs())

    def _with_programs(self) -> tuple[str, ...]:
        if self._found[0] != self._registry.revision or self._registry._cache is not self._begun_on:
            with self._registry.snapshot() as snapshot:
                self._found = snapshot.revision, names_with_programs(snapshot)
        return self._found[1]

    # A program of DSPy that holds this is copied and pickled together with it.

    def __copy__(self) -> Programs:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Programs:
        return self

    def __reduce__(self) -> tuple[type[Programs], tuple[Any, ...]]:
        return type(self), (self._registry, self.allow, self._names)

    # What a look-up does when its version is not built

    def _find(self, name: str, resolved: Resolved) -> Any:
        if self._begun_on is None:
            self._begun_on = self._inherited
        self._keep_up()
        with self._lock:
            if resolved in self._ready:
                self._serving[name] = resolved
                return self._ready[resolved]
            old = self._ready.get(self._serving.setdefault(name, None) or resolved)
            failure = self._failed.get(resolved)
            build, is_first = self._build_of(resolved, failure)
        if build is None:
            if old is not None or failure is None:
                return old
            raise failure.error.with_traceback(None)
        if old is not None:
            if is_first:
                self._start(name, resolved, build)
            return old
        if is_first:
            self._run(name, resolved, build)
        build.done.wait()
        if build.error is not None:
            raise build.error.with_traceback(None)
        return self._find(name, resolved)

    def _keep_up(self) -> None:
        """Follow the registry where a writer has opened it again. All is kept while versions mean what they meant."""
        cache, file = self._registry._cache, self._registry._file
        if cache is not self._begun_on:
            if file is not self._of and file.registry_id == self._of.registry_id:
                self._begun_on, self._of = cache, file
            else:
                self._forget()
        self._follower.follow(self._registry)

    def _look(self) -> None:
        """Begin to build what the names that were asked for mean now. The thread that hears the bell calls it."""
        for name, held in list(self._serving.items()):
            with suppress(Exception):  # whatever is wrong, a look-up says so
                wanted = self._resolve(name)
                if self._begun_on is not None:  # else nothing was looked up since the fork
                    self._keep_up()
                if held is not None and wanted not in self._ready and held in self._ready:
                    self._find(name, wanted)

    def _build_of(self, resolved: Resolved, failure: _Failure | None) -> tuple[_Build | None, bool]:
        """The build to wait for, and whether the caller runs it. None: it has failed, and is not tried again yet."""
        if failure is not None and not failure.is_due:
            return None, False
        build = self._builds.get(resolved)
        if build is not None:
            return build, False
        build = self._builds[resolved] = _Build()
        return build, True

    def _start(self, name: str, resolved: Resolved, build: _Build) -> None:
        try:
            threading.Thread(target=self._run, args=(name, resolved, build), daemon=True).start()
        except RuntimeError:  # the process has too many threads, or ends: the next look-up tries again
            self._end(resolved, build)

    def _end(self, resolved: Resolved, build: _Build) -> None:
        with self._lock:
            self._builds.pop(resolved, None)
        build.done.set()

    def _run(self, name: str, resolved: Resolved, build: _Build) -> None:
        identity = self._of.registry_id
        try:
            program = self._load(name, resolved)
        except Exception as error:
            self._fail(name, resolved, error)
            build.error = error
        else:
            with self._lock:
                if self._of.registry_id == identity:
                    self._keep(name, resolved, program)
        finally:
            self._end(resolved, build)

    def _load(self, name: str, resolved: Resolved) -> Any:
        with self._registry.snapshot() as snapshot:
            try:
                document = read_document(snapshot, str(resolved))
            except NoProgramError as error:
                raise NoProgramError(name, error.version) from None  # what was asked for, not its version
        return rebuild(document, name, self.allow)

    def _keep(self, name: str, resolved: Resolved, program: Any) -> None:
        self._ready[resolved] = program
        self._failed.pop(resolved, None)
        self._serving[name] = resolved
        of_module = [held for held in self._ready if held.name == resolved.name]
        in_use = set(self._serving.values())
        for held in of_module[: max(0, len(of_module) - _MOST_HELD)]:
            if held not in in_use:
                del self._ready[held]

    def _fail(self, name: str, resolved: Resolved, error: Exception) -> None:
        with self._lock:
            was_told = resolved in self._failed or isinstance(error, StoreClosedError)  # closing is no fault
            self._failed[resolved] = _Failure(error)
            serving = self._serving.get(name)
        if not was_told:
            goes_on = f"; version {serving.version} goes on serving" if serving else ""
            told = str(error) if isinstance(error, RegistryError) else f"{type(error).__name__}: {error}"
            if isinstance(error, NoProgramError):
                told = f"it has no program. {error.remedy}"
            _log.error("version %s cannot serve %s%s: %s", resolved.version, name, goes_on, told)

    def _status(self, name: str) -> ProgramStatus:
        serving = self._serving.get(name)
        try:
            wanted = self._resolve(name)
        except RegistryError as error:  # it was unregistered, or the label was removed
            return ProgramStatus(name, serving.version if serving else 0, 0, str(error), False)
        if wanted in self._ready:
            serving = wanted
        failure = self._failed.get(wanted)
        problem = str(failure.error) if failure else ""
        return ProgramStatus(name, serving.version if serving else 0, wanted.version, problem, wanted in self._builds)


_all: weakref.WeakSet[Programs] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for programs in list(_all):
        programs._begin_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
