"""What a writer remembers of its registry between two commits, so that it need not read it again.

No other process commits in between: `Ownership` verifies that. It saves time: to ask LMDB how many entries a database
has takes longer than to read a row.
"""

from __future__ import annotations

from dspy_registry.registry_store.changes import State
from dspy_registry.writer.operations import Operations


class Known:
    """`state` is the head. None: it must be read.

    `filled` maps a database to whether it has entries. A database that is not in it must be looked at. The code that
    reads a value stores it here. The values are right between two commits, and during a commit until it writes.
    """

    def __init__(self) -> None:
        self.state: State | None = None
        self.filled: dict[bytes, bool] = {}

    def forget(self) -> None:
        """Forget everything, because a commit failed."""
        self.state = None
        self.filled.clear()

    def expect(self, operations: Operations) -> None:
        """Forget what these operations may make wrong. They are about to be written, and may or may not land."""
        self.state = None
        for name in operations.puts:
            if not self.filled.get(name):
                self.filled.pop(name, None)
        for name in operations.deletes:
            self.filled.pop(name, None)
