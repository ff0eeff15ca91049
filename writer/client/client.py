"""The client of the writer daemon: it has the calls of `RegistryWriter`, for any process of the host."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dspy_registry.registry_store.errors import StoreClosedError
from dspy_registry.registry_store.labels import LabelUpdate, Weights, label_removal, label_update
from dspy_registry.registry_store.paths import registry_path, socket_path
from dspy_registry.registry_store.policy import Policy
from dspy_registry.registry_store.protocol import Answer, DaemonStatus
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.rollout import Plan
from dspy_registry.writer.client import calls
from dspy_registry.writer.client.calls import Call
from dspy_registry.writer.client.session import Session, check_timeout

if TYPE_CHECKING:
    from dspy_registry.registry_store.protocol import Progress
    from dspy_registry.writer.discovery.report import DiscoveryReport
    from dspy_registry.writer.programs import Publication, Published
    from dspy_registry.writer.reconcile import Outcome


class WriterClient:
    """Sends changes to the registry's writer daemon. Each is durable, and visible to readers, when the call returns.

    `path` is the registry's folder; None means $DSPY_REGISTRY, else the user's data directory. `timeout` is how many
    seconds the daemon may be silent during a call; None means no limit. The first call connects. When the connection
    is lost, the client connects and sends the request again within the time limit: the request takes effect once.
    You may repeat a call that raised WriterTimeoutError or WriterUnavailableError. If you repeat it before any other
    change by this client, it succeeds if the first one did and its effect is still in force. Otherwise it is carried
    out on the registry as it is then.

    Threads may share a client, and each waits only for its calls. A client works in a forked child, which opens new
    connections. Every call raises WriterUnavailableError when no daemon answers, WriterTimeoutError when the answer is
    late, BusyError when the daemon has too much to do, and the errors of the same call of RegistryWriter.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, timeout: float | None = 10.0) -> None:
        self._folder = registry_path(path)
        self._socket_path = socket_path(self._folder)
        self.timeout = check_timeout(timeout)
        self._closed = False
        self._begin()
        _clients.add(self)

    def _begin(self) -> None:
        # Popping and appending are atomic: threads that share the client need no other lock.
        self._idle: list[Session] = []
        self._abandoning: list[Session] = []  # idle too, each with an abandoned call
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"WriterClient({str(self._folder)!r}, timeout={self.timeout})"

    @property
    def revision(self) -> int:
        """The newest committed revision, asked from the daemon."""
        return self.status().revision

    def register_module(self, info: ModuleInfo, *, expected_version: int | None = None) -> int:
        """Register a module, or update it. Returns the revision in which it is visible.

        `expected_version` None: whatever its version is. See RegistryWriter.register_module.
        """
        return calls.visible_in(self._call(calls.register(info, expected_version)))

    def register_modules(self, infos: Iterable[ModuleInfo], *, progress: Progress | None = None) -> int:
        """Register many modules in one commit, or no module. Returns the revision in which they are visible.

        `progress(done, total)` is called from time to time, None: it is not. The time limit counts from the last
        progress. Raises one InvalidModuleError naming what is wrong with every module, or that the batch is too large.
        """
        call = calls.register_many(infos, progress)
        revision = calls.visible_in(self._call(call))
        if progress is not None:
            progress(len(call.modules), len(call.modules))
        return revision

    def unregister_module(self, name: str) -> int:
        """Remove a module by its full name. Returns the revision in which it is gone. Raises UnknownModuleError."""
        return calls.visible_in(self._call(calls.unregister(name)))

    def release(self, name: str) -> int:
        """End an override. Returns the revision in which it has ended. See RegistryWriter.release."""
        return calls.visible_in(self._call(calls.release(name)))

    def rename_module(self, name: str, new_name: str) -> int:
        """Give a client's module another name. See RegistryWriter.rename_module."""
        return calls.visible_in(self._call(calls.rename(name, new_name)))

    def publish_program(
        self, publication: Publication, document: bytes, *, expected_version: int | None = None
    ) -> Published:
        """Publish a program as a version of a module, in one commit. `expected_version` None: whatever its version is.

        See RegistryWriter.publish_program.
        """
        call = calls.publish(publication, document, expected_version)
        return calls.published(self._call(call), publication)

    def set_alias(self, alias: str, name: str) -> int:
        """Let `alias` resolve to the module `name`. Returns the revision in which it does.

        Raises InvalidModuleError for an alias that is malformed or a module's full name, UnknownModuleError.
        """
        return calls.visible_in(self._call(calls.set_alias(alias, name)))

    def remove_alias(self, alias: str) -> int:
        """Remove an alias. Returns the revision in which it is gone. Raises UnknownAliasError."""
        return calls.visible_in(self._call(calls.remove_alias(alias)))

    def set_policy(self, pattern: str, policy: Policy) -> int:
        """Decide about all modules that `pattern` fits. See RegistryWriter.set_policy."""
        return calls.visible_in(self._call(calls.set_policy(pattern, policy)))

    def remove_policy(self, pattern: str) -> int:
        """Remove a client's policy of a pattern. See RegistryWriter.remove_policy."""
        return calls.visible_in(self._call(calls.remove_policy(pattern)))

    def open_circuit(self, name: str, seconds: float, version: int | None = None) -> None:
        """Open the circuit of a module version by hand: calls go elsewhere for `seconds`. None: the version in force.

        `name` is a full name, an alias or a short name. Raises UnknownModuleError, and InvalidArgumentError for seconds
        that are not above 0, or what is no version.
        """
        calls.visible_in(self._call(calls.open_circuit(name, seconds, version)))

    def reset_circuit(self, name: str, version: int | None = None) -> None:
        """Close the circuits of a module, or of one version; None: of all. What opened them is forgotten.

        `name` and errors are as for `open_circuit`. A circuit that is closed stays closed.
        """
        calls.visible_in(self._call(calls.reset_circuit(name, version)))

    def set_label(
        self, name: str, label: str, versions: int | Weights, *, expected: int | Weights | None = None
    ) -> int:
        """Let a label name a version, or several with weights. Returns the revision in which it does.

        `expected` None: whatever it names now; 0: only if it is not set. See RegistryWriter.set_label.
        """
        return self.set_labels((label_update(name, label, versions, expected),))

    def set_labels(self, updates: Iterable[LabelUpdate]) -> int:
        """Set, move and remove several labels in one commit, or none. See RegistryWriter.set_labels."""
        return calls.visible_in(self._call(calls.set_labels(updates)))

    def remove_label(self, name: str, label: str, *, expected: int | Weights | None = None) -> int:
        """Remove a label. Returns the revision in which it is gone.

        `expected` None: whatever it names now. See RegistryWriter.remove_label.
        """
        return self.set_labels((label_removal(name, label, expected),))

    def start_rollout(self, name: str, version: int, *, label: str, plan: Plan | None = None) -> int:
        """Move a label to `version` in guarded steps. Returns the revision in which the first step is visible.

        `plan` None: 1, 10, 50 and 100 %, ten minutes each. The daemon moves the label, and returns it when the new
        version is worse; docs/rollouts.md says when. `name` is a full name. Raises InvalidArgumentError for what is
        wrong with the plan, for a label that does not name one other version, or is under a rollout already,
        UnknownModuleError, UnknownVersionError, UpgradeRequiredError.
        """
        return calls.visible_in(self._call(calls.start_rollout(name, version, label, plan)))

    def steer_rollout(self, name: str, action: str, *, label: str) -> int:
        """Let a rollout stay at its step ("pause"), go on ("resume") or give the label back ("abort").

        A paused rollout still returns when the new version is worse. Returns the revision in which it is so. Raises
        InvalidArgumentError when the label is under no rollout.
        """
        return calls.visible_in(self._call(calls.steer_rollout(name, action, label)))

    def set_implications(self, implications: Mapping[str, Sequence[str]]) -> int:
        """Replace the capability implications that clients declare. See RegistryWriter.set_implications."""
        return calls.visible_in(self._call(calls.set_implications(implications)))

    def apply_discovery(self, report: DiscoveryReport) -> Outcome:
        """Apply what discovery found, in one commit. See RegistryWriter.apply_discovery."""
        return calls.outcome(self._call(calls.apply_discovery(report)))

    def reset_usage(self, name: str, version: int | None = None) -> None:
        """Forget the statistics of a module, or of one version; None: of all versions, and the lifetime totals.

        See RegistryWriter.reset_usage.
        """
        calls.visible_in(self._call(calls.reset_usage(name, version)))

    def status(self) -> DaemonStatus:
        """The state of the daemon: its pid, revision, queue lengths and errors."""
        return calls.told_status(self._call(calls.read_status()))

    def report_usage(self, batch: bytes) -> None:
        """Hand an encoded batch of usage (`usage.encode_reports`) to the daemon. Durable when the call returns."""
        calls.visible_in(self._call(calls.report_usage(batch)))

    def close(self) -> None:
        """Close the connections. Does nothing the second time."""
        self._closed = True
        for sessions in (self._idle, self._abandoning):
            while sessions:
                sessions.pop().close()

    def __enter__(self) -> WriterClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, call: Call) -> Answer:
        if self._closed:
            raise StoreClosedError(f"the client of {self._folder} is closed.")
        idle, abandoning = self._idle, self._abandoning  # a forked child has others
        session = self._session(call)
        try:
            return session.call(call, self.timeout)
        finally:
            (idle if session.abandoned is None else abandoning).append(session)
            if self._closed:
                self.close()

    def _session(self, call: Call) -> Session:
        """The session whose abandoned call this one repeats, else an idle session, else a new one."""
        if call.is_change:
            for session in list(self._abandoning):
                if session.abandoned is not None and session.abandoned.call == call and self._is_taken(session):
                    return session
            self._forget_abandoned()
        try:
            return self._idle.pop()
        except IndexError:
            session = Session(self._folder, self._socket_path)
            self._sessions.add(session)
            return session

    def _is_taken(self, session: Session) -> bool:
        try:
            self._abandoning.remove(session)
        except ValueError:  # another thread took it
            return False
        return True

    def _forget_abandoned(self) -> None:
        """Another change is sent: from now on no call counts as a repetition of an earlier one.

        The change goes over the connection of the last abandoned call, so that the daemon keeps the order of the two.
        """
        for session in list(self._abandoning):
            if self._is_taken(session):
                session.abandoned = None
                self._idle.append(session)

    def _after_fork(self) -> None:
        """In a child: the connections belong to the parent. The daemon does not notice that they are closed here."""
        for session in list(self._sessions):
            session.close()
        self._begin()


_clients: weakref.WeakSet[WriterClient] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
