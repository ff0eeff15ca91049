"""A batch of modules while its parts are being received."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_registry.registry_store.errors import BusyError, InvalidModuleError, ProtocolError, RegistryError
from dspy_registry.writer.daemon.bounds import Bounds

if TYPE_CHECKING:
    from dspy_registry.writer.daemon.group_commit import GroupCommit

_MODULE_BYTES = 48  # memory for each module, beside its encoded bytes


class BatchUpload:
    """What one connection has sent of a batch. A batch beyond the bounds is dropped, and `take` raises the reason."""

    def __init__(self, queue: GroupCommit, bounds: Bounds) -> None:
        self._queue = queue
        self._bounds = bounds
        self._modules: list[bytes] = []
        self._bytes = 0
        self._count = 0
        self._refused: RegistryError | None = None

    @property
    def is_begun(self) -> bool:
        """Whether parts have come of a batch that has not."""
        return self._count > 0

    def add(self, modules: list[bytes]) -> None:
        """Keep some more modules."""
        self._count += len(modules)
        if self._refused is None:
            size = sum(map(len, modules)) + _MODULE_BYTES * len(modules)
            self._modules += modules
            self._bytes += size
            self._queue.hold(size)
            self._refuse_excess()

    def take(self, count: int) -> tuple[list[bytes], int]:
        """The batch, and the bytes of memory that the caller has to free. Raises what was wrong with the batch."""
        received, refused = self._count, self._refused
        modules, held = self._modules, self._bytes
        if refused is not None or received != count:
            self.drop()
            raise refused or ProtocolError(f"a batch of {count} modules came as {received}.")
        self.drop()
        return modules, held

    def drop(self) -> None:
        """Keep nothing."""
        if self._bytes:
            self._queue.hold(-self._bytes)
        self._forget()

    def _forget(self) -> None:
        self._modules, self._bytes, self._count, self._refused = [], 0, 0, None

    def _refuse_excess(self) -> None:
        problem = batch_problem(self._count, self._bytes, self._bounds)
        error: RegistryError | None = None
        if problem:
            error = InvalidModuleError("a batch", (problem,))
        elif self._queue.held_bytes > self._bounds.held_bytes:
            error = BusyError("too many requests wait in the writer daemon, so it cannot take this batch.")
        if error is not None:
            count = self._count
            self.drop()
            self._count, self._refused = count, error


def batch_problem(count: int, size: int, bounds: Bounds) -> str:
    """What is wrong with a batch of `count` modules and `size` bytes. Empty when nothing is."""
    if count > bounds.batch_modules:
        return f"batch: {count} modules, at most {bounds.batch_modules} are allowed"
    if size > bounds.batch_bytes:
        return f"batch: {size} bytes encoded, the limit is {bounds.batch_bytes}"
    return ""
