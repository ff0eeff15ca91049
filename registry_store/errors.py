"""Every error of the registry. Each also derives from the built-in exception that fits, and carries its remedy.

`str(error)` says what is wrong and then how to mend it, so one log line is enough to act on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class RegistryError(Exception):
    """Root of all errors raised by this project.

    `message` says what is wrong. `remedy` says what the reader of the message can do; "": nothing is known.
    """

    remedy = ""
    _arguments: tuple[str, ...] = ()
    """The attributes that are the arguments of the class's own `__init__`, for copies in other processes."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if remedy is not None:
            self.remedy = remedy

    def __reduce__(self) -> Any:
        if not self._arguments:
            return super().__reduce__()
        return type(self), tuple(getattr(self, name) for name in self._arguments)

    def __str__(self) -> str:
        # Also replaces KeyError.__str__, which would show the repr of the message.
        return f"{self.message} {self.remedy}".rstrip()


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


# What was asked for


class UnknownModuleError(RegistryError, KeyError):
    """No module has this name. `name` is the name asked for, `closest` the nearest known names, best first."""

    _arguments = ("name", "closest")
    _MESSAGE = "no module is registered as {!r}."
    _REMEDY = "`dspy-registry list` shows all names."

    def __init__(self, name: str, closest: Iterable[str] = ()) -> None:
        self.name = name
        self.closest = tuple(closest)
        hint = f"Did you mean {', '.join(self.closest)}?" if self.closest else self._REMEDY
        is_short = any(_plain(each).endswith(f".{_plain(name)}") for each in self.closest)
        super().__init__(self._MESSAGE.format(name), remedy=f"{hint} Give the full name." if is_short else hint)


class UnknownAliasError(UnknownModuleError):
    """No alias has this name. Short names of modules are not aliases. `name` is the name asked for."""

    _MESSAGE = "no alias is called {!r}."
    _REMEDY = "`dspy-registry alias list` shows all aliases."


class AmbiguousNameError(RegistryError, LookupError):
    """A short name fits several modules, and not exactly one of them is in `dspy.`. `candidates` lists up to 8."""

    remedy = "Use the full name, or declare an alias."
    _arguments = ("name", "candidates")

    def __init__(self, name: str, candidates: Iterable[str]) -> None:
        self.name = name
        self.candidates = tuple(candidates)
        super().__init__(f"{name!r} could mean any of: {', '.join(self.candidates)}.")


class UnknownVersionError(RegistryError, KeyError):
    """A version of a module is not kept; `version` None: no earlier version is. `kept` lists the versions that are."""

    _arguments = ("name", "version", "kept")

    def __init__(self, name: str, version: int | None, kept: Iterable[int | str] = ()) -> None:
        self.name = name
        self.version = version
        self.kept = tuple(map(int, kept))  # strings, if the error came over the socket
        message = f"version {version} of {name} is not kept."
        super().__init__(
            f"no earlier version of {name} is kept." if version is None else message,
            remedy=f"Kept: {', '.join(map(str, self.kept)) or 'none'}; see `dspy-registry history {name}`.",
        )


class UnknownLabelError(RegistryError, KeyError):
    """A module has no label of this name. `labels` lists those that it has."""

    _arguments = ("name", "label", "labels")

    def __init__(self, name: str, label: str, labels: Iterable[str] = ()) -> None:
        self.name = name
        self.label = label
        self.labels = tuple(labels)
        shown = ", ".join((*self.labels[:16], "…") if len(self.labels) > 16 else self.labels)
        super().__init__(
            f"{name} has no label {label!r}.",
            remedy=f"It has {shown or 'none'}; see `dspy-registry label list {name}`.",
        )


class InvalidArgumentError(RegistryError, ValueError):
    """An argument is not allowed; the message says what is."""


class NotPossibleError(InvalidArgumentError):
    """What is asked for is allowed, but not as the registry or the host is now. The message says why."""


class NoHomeError(InvalidArgumentError):
    """The registry's folder is in a home directory, and it is not known where that is."""


# What was to be stored


class InvalidModuleError(RegistryError, ValueError):
    """A module, or a batch of them, breaks the limits. `problems` has one line for each wrong field."""

    remedy = "Nothing was changed."
    _arguments = ("subject", "problems")

    def __init__(self, subject: str, problems: Iterable[str]) -> None:
        self.subject = subject
        self.problems = tuple(problems)
        super().__init__(f"{subject} cannot be registered: {'; '.join(self.problems)}.")


class InvalidProgramError(RegistryError, ValueError):
    """A program cannot be published. `problems` has one line for each reason."""

    remedy = "Nothing was changed."
    _arguments = ("subject", "problems")

    def __init__(self, subject: str, problems: Iterable[str]) -> None:
        self.subject = subject
        self.problems = tuple(problems)
        super().__init__(f"the program {subject} cannot be published: {'; '.join(self.problems)}.")


class ProgramRefusedError(RegistryError, ValueError):
    """A published program does not fit this process, and was not loaded. `problems` has one line for each reason."""

    remedy = "Publish it again from the code that runs here, or run the code that it was published from."
    _arguments = ("name", "problems")

    def __init__(self, name: str, problems: Iterable[str]) -> None:
        self.name = name
        self.problems = tuple(problems)
        super().__init__(f"the program {name} was not loaded: {'; '.join(self.problems)}.")


class NoProgramError(RegistryError, KeyError):
    """A version of a module has no program. `name` is what was asked for, `version` the version that it means."""

    _arguments = ("name", "version")

    def __init__(self, name: str, version: int) -> None:
        self.name = name
        self.version = version
        super().__init__(
            f"{name} is version {version}, which has no program.",
            remedy="Publish one (`dspy-registry program publish`), or ask for a label of a version that has one.",
        )


class VocabularyError(RegistryError, ValueError):
    """Capability implications cannot be used: a malformed word, a limit, or a cycle. The message names it."""


class ConflictError(RegistryError, ValueError):
    """`expected_version` is not the module's version. `current_version` is its version (0: not registered)."""

    remedy = "Read the module again, then repeat the change."
    _ABSENT = "Look at its name. To register it, expect version 0, or none."
    _arguments = ("name", "expected_version", "current_version")

    def __init__(self, name: str, expected_version: int, current_version: int) -> None:
        self.name = name
        self.expected_version = expected_version
        self.current_version = current_version
        found = f"at version {current_version}, not" if current_version else "not registered, so it is not at version"
        super().__init__(f"{name} is {found} {expected_version}.", remedy=None if current_version else self._ABSENT)


class LabelConflictError(RegistryError, ValueError):
    """A label does not name what was expected.

    `expected` and `current` are as `label list` shows them; "-": the label is not set.
    """

    remedy = "Read the label again, then repeat the change."
    _arguments = ("name", "label", "expected", "current")

    def __init__(self, name: str, label: str, expected: str, current: str) -> None:
        self.name = name
        self.label = label
        self.expected = expected
        self.current = current
        super().__init__(f"the label {label} of {name} names {current}, not {expected}.")


class NoCandidateError(RegistryError, LookupError):
    """`route` found no module that may be called. `excluded` are those left out: (name, version, reason, detail)."""

    _arguments = ("excluded",)

    remedy = "Ask for less, or wait until a module is healthy again."

    def __init__(self, excluded: Iterable[tuple[str, int, str, str]] = ()) -> None:
        self.excluded = tuple(excluded)
        reasons = "; ".join(f"{name} ({reason}: {detail})" for name, _, reason, detail in self.excluded)
        super().__init__(
            f"no module may be called: {reasons}." if reasons else "no module meets these conditions.",
            remedy=None if reasons else "`dspy-registry find` shows what meets which condition.",
        )


class RouteFailedError(RegistryError, RuntimeError):
    """`Router` tried every candidate that it could in time. `attempts` says how each ended; the cause is the last's.

    Without attempts, every candidate was at its limit of concurrent calls until the end.
    """

    _arguments = ("message", "attempts")

    remedy = "The attempts say what to mend. A longer deadline or another target gives more of them."

    def __init__(self, message: str, attempts: Iterable[object] = ()) -> None:
        self.attempts = tuple(attempts)
        super().__init__(message)


class LimitReachedError(RegistryError, TimeoutError):
    """As many calls as a limit allows are under way, and none ended within the caller's patience.

    `limit` is the key of the limit, "module:NAME" or "pool:NAME". `calls` is how many calls it allows. `holders` has
    one text for each call under way: its process, and for how many seconds.
    """

    _arguments = ("limit", "calls", "holders")

    def __init__(self, limit: str, calls: int, holders: Iterable[str] = ()) -> None:
        self.limit = limit
        self.calls = calls
        self.holders = tuple(holders)
        shown = ", ".join((*self.holders[:8], "…") if len(self.holders) > 8 else self.holders)
        super().__init__(
            f"{limit} allows {calls} calls at once, and all are under way: {shown or 'by processes unknown'}.",
            remedy="Wait longer (`patience`), or raise max_concurrency (`dspy-registry policy set`).",
        )


# The store itself


class StoreError(RegistryError, OSError):
    """The registry's files cannot be used; the message says why."""


class RegistryFullError(StoreError):
    """The registry has no sequence or version number left for this registration. Nothing was changed."""

    remedy = (
        "Load its modules into a new registry in another folder "
        "(`dspy-registry list --json`, `dspy-registry register -`), and let writer and readers use the new one."
    )


class RegistryNotFoundError(StoreError, FileNotFoundError):
    """There is no registry in this folder."""

    remedy = "Start its writer first (`dspy-registry serve`), or name another folder (--path, $DSPY_REGISTRY)."


class DamagedStoreError(StoreError):
    """A file of the registry was cut short, emptied, overwritten or taken away: `file`. The message names it too."""

    file = "data.mdb"
    remedy = (
        "Restore a backup (`dspy-registry restore`). "
        "Without one, keep a copy of the folder, and start a new registry in another one."
    )


class NoReaderSlotError(StoreError):
    """As many processes and snapshots read the registry as it has slots for; the message names those with most."""

    remedy = "Stop idle processes or close snapshots: a process takes a slot, a snapshot up to two."


class StorePermissionError(StoreError, PermissionError):
    """This user may not open the registry's files."""


class UpgradeRequiredError(StoreError):
    """The registry has format 1, which has no room for what was asked; nothing was changed."""

    remedy = "Stop the daemon and run `dspy-registry upgrade`, once every worker and the daemon are of this release."


class FormatVersionError(RegistryError, ValueError):
    """The registry has a format that this release does not know; `found` and `supported` (the newest) are formats."""

    remedy = "Use the release that wrote it or a newer one, or restore a backup of an older format."
    _arguments = ("found", "supported")

    def __init__(self, found: int, supported: int) -> None:
        self.found = found
        self.supported = supported
        super().__init__(f"the registry has format version {found}, this release reads up to {supported}.")


class CorruptRecordError(RegistryError, ValueError):
    """Stored bytes do not match their checksum or cannot be decoded."""

    remedy = "Run `dspy-registry check`. Unregister the modules it names and register them again, or restore a backup."


class StoreClosedError(RegistryError, ValueError):
    """The object was closed, or belongs to another process."""


class ForkedSnapshotError(RegistryError, RuntimeError):
    """The process was forked while a snapshot was open, so the child cannot reach the database."""

    remedy = "Close snapshots before os.fork(), or open the registry in the child by exec or spawn."


class DiscoveryError(RegistryError, RuntimeError):
    """The workers' Python environment could not be searched."""


# The writer


class WriterLockedError(RegistryError, BlockingIOError):
    """Another writer has the writer lock. `pid` is its process; None: unknown."""

    remedy = "Send changes to that writer with WriterClient or the command line, or stop it first."
    _arguments = ("path", "pid")

    def __init__(self, path: str, pid: int | None) -> None:
        self.path = path
        self.pid = pid
        super().__init__(f"{path} already has a writer: {f'process {pid}' if pid else 'another process'}.")


class WriterUnavailableError(RegistryError, ConnectionError):
    """No writer daemon answers."""

    remedy = "Start one with `dspy-registry serve`."


class WriterTimeoutError(RegistryError, TimeoutError):
    """The writer daemon did not answer in time. The change may have been made or not."""

    remedy = "Repeat the call with the same client: a request that arrives twice takes effect once."


class BusyError(RegistryError, TimeoutError):
    """The writer daemon's queue is full; nothing was changed."""

    remedy = "Try again later, or send changes in batches with register_modules."


class ProtocolError(RegistryError, ValueError):
    """A message between client and daemon is not understood."""


# The cluster


class ClusterUnavailableError(RegistryError, ConnectionError):
    """The cluster does not answer, or not in time. The message says whether the change may have been made."""

    remedy = "Look at the cluster's nodes and at `dspy-registry status`, then repeat the call with the same client."


class ClusterFullError(RegistryError, OSError):
    """The cluster's storage quota is used up; nothing was changed."""

    remedy = "Compact and defragment etcd, or raise its quota, then `etcdctl alarm disarm`: see docs/cluster.md."


class ClusterAccessError(RegistryError, PermissionError):
    """The cluster does not admit this host: certificate, user, password or rights."""


class ClusterMembershipError(RegistryError, ValueError):
    """This registry and the cluster do not belong together; the message says why."""
