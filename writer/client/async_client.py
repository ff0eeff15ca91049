"""The client of the writer daemon for asyncio: many concurrent calls over one connection."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from dspy_registry.registry_store.errors import StoreClosedError
from dspy_registry.registry_store.labels import LabelUpdate, Weights, label_removal, label_update
from dspy_registry.registry_store.paths import registry_path, socket_path
from dspy_registry.registry_store.policy import Policy
from dspy_registry.registry_store.protocol import Answer, DaemonStatus
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.rollout import Plan
from dspy_registry.writer.client import calls
from dspy_registry.writer.client.async_session import AsyncSession
from dspy_registry.writer.client.calls import Call
from dspy_registry.writer.client.session import check_timeout

if TYPE_CHECKING:
    from dspy_registry.registry_store.protocol import Progress
    from dspy_registry.writer.discovery.report import DiscoveryReport
    from dspy_registry.writer.programs import Publication, Published
    from dspy_registry.writer.reconcile import Outcome


class AsyncWriterClient:
    """Sends changes to the registry's writer daemon, as WriterClient does, without blocking the event loop.

    Concurrent calls travel together and take effect in the order in which they were made. While 64 calls are
    unanswered, further calls wait. A call that is cancelled may have taken effect. For `path`, `timeout`, repeated
    calls and errors see WriterClient. Use it in the thread of the running event loop. In another loop, or in a forked
    child, it opens another connection. Close it before its loop ends.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, timeout: float | None = 10.0) -> None:
        self._folder = registry_path(path)
        self._socket_path = socket_path(self._folder)
        self.timeout = check_timeout(timeout)
        self._closed = False
        self._session: AsyncSession | None = None
        _clients.add(self)

    def __repr__(self) -> str:
        return f"AsyncWriterClient({str(self._folder)!r}, timeout={self.timeout})"

    async def revision(self) -> int:
        """The newest committed revision, asked from the daemon."""
        return (await self.status()).revision

    async def register_module(self, info: ModuleInfo, *, expected_version: int | None = None) -> int:
        """See WriterClient.register_module."""
        return calls.visible_in(await self._call(calls.register(info, expected_version)))

    async def register_modules(self, infos: Iterable[ModuleInfo], *, progress: Progress | None = None) -> int:
        """See WriterClient.register_modules."""
        call = calls.register_many(infos, progress)
        revision = calls.visible_in(await self._call(call))
        if progress is not None:
            progress(len(call.modules), len(call.modules))
        return revision

    async def unregister_module(self, name: str) -> int:
        """See WriterClient.unregister_module."""
        return calls.visible_in(await self._call(calls.unregister(name)))

    async def release(self, name: str) -> int:
        """See WriterClient.release."""
        return calls.visible_in(await self._call(calls.release(name)))

    async def rename_module(self, name: str, new_name: str) -> int:
        """See WriterClient.rename_module."""
        return calls.visible_in(await self._call(calls.rename(name, new_name)))

    async def publish_program(
        self, publication: Publication, document: bytes, *, expected_version: int | None = None
    ) -> Published:
        """See WriterClient.publish_program."""
        call = calls.publish(publication, document, expected_version)
        return calls.published(await self._call(call), publication)

    async def set_alias(self, alias: str, name: str) -> int:
        """See WriterClient.set_alias."""
        return calls.visible_in(await self._call(calls.set_alias(alias, name)))

    async def remove_alias(self, alias: str) -> int:
        """See WriterClient.remove_alias."""
        return calls.visible_in(await self._call(calls.remove_alias(alias)))

    async def set_policy(self, pattern: str, policy: Policy) -> int:
        """See WriterClient.set_policy."""
        return calls.visible_in(await self._call(calls.set_policy(pattern, policy)))

    async def remove_policy(self, pattern: str) -> int:
        """See WriterClient.remove_policy."""
        return calls.visible_in(await self._call(calls.remove_policy(pattern)))

    async def open_circuit(self, name: str, seconds: float, version: int | None = None) -> None:
        """See WriterClient.open_circuit."""
        calls.visible_in(await self._call(calls.open_circuit(name, seconds, version)))

    async def reset_circuit(self, name: str, version: int | None = None) -> None:
        """See WriterClient.reset_circuit."""
        calls.visible_in(await self._call(calls.reset_circuit(name, version)))

    async def set_label(
        self, name: str, label: str, versions: int | Weights, *, expected: int | Weights | None = None
    ) -> int:
        """See WriterClient.set_label."""
        return await self.set_labels((label_update(name, label, versions, expected),))

    async def set_labels(self, updates: Iterable[LabelUpdate]) -> int:
        """See WriterClient.set_labels."""
        return calls.visible_in(await self._call(calls.set_labels(updates)))

    async def remove_label(self, name: str, label: str, *, expected: int | Weights | None = None) -> int:
        """See WriterClient.remove_label."""
        return await self.set_labels((label_removal(name, label, expected),))

    async def start_rollout(self, name: str, version: int, *, label: str, plan: Plan | None = None) -> int:
        """See WriterClient.start_rollout."""
        return calls.visible_in(await self._call(calls.start_rollout(name, version, label, plan)))

    async def steer_rollout(self, name: str, action: str, *, label: str) -> int:
        """See WriterClient.steer_rollout."""
        return calls.visible_in(await self._call(calls.steer_rollout(name, action, label)))

    async def set_implications(self, implications: Mapping[str, Sequence[str]]) -> int:
        """See WriterClient.set_implications."""
        return calls.visible_in(await self._call(calls.set_implications(implications)))

    async def apply_discovery(self, report: DiscoveryReport) -> Outcome:
        """See WriterClient.apply_discovery."""
        return calls.outcome(await self._call(calls.apply_discovery(report)))

    async def reset_usage(self, name: str, version: int | None = None) -> None:
        """See WriterClient.reset_usage."""
        calls.visible_in(await self._call(calls.reset_usage(name, version)))

    async def status(self) -> DaemonStatus:
        """The state of the daemon: its pid, revision, queue lengths and errors."""
        return calls.told_status(await self._call(calls.read_status()))

    async def report_usage(self, batch: bytes) -> None:
        """See WriterClient.report_usage."""
        calls.visible_in(await self._call(calls.report_usage(batch)))

    async def close(self) -> None:
        """Close the connection. Waiting calls raise StoreClosedError. Does nothing the second time."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> AsyncWriterClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _call(self, call: Call) -> Answer:
        if self._closed:
            raise StoreClosedError(f"the client of {self._folder} is closed.")
        session = self._session
        if session is None or session.loop is not asyncio.get_running_loop():
            session = self._session = AsyncSession(self._folder, self._socket_path)
        return await session.call(call, self.timeout)

    def _after_fork(self) -> None:
        """In a child: the connection belongs to the parent."""
        if self._session is not None:
            _inherited.append(self._session)
            self._session = None


_clients: weakref.WeakSet[AsyncWriterClient] = weakref.WeakSet()
# The child shares the parent's epoll: closing an inherited transport would take the connection out of it.
_inherited: list[AsyncSession] = []


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
