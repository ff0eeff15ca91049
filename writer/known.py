"""What a writer knows of its registry from one commit to the next without reading it again.

No other writer commits in between, as `Ownership` verifies. A look at the number of a database's entries takes longer
than reading a row.
"""

from __future__ import annotations

from dspy_registry.registry_store.changes import State
from dspy_registry.writer.operations import Operations


class Known:
    """`state` is the head; None: it must be read. `filled` says of a database whether it has entries, if that is known.

    Whoever looks, adds what it finds. It is right between two commits, and within one before anything is written.
    """

    def __init__(self) -> None:
        self.state: State | None = None
        self.filled: dict[bytes, bool] = {}

    def forget(self) -> None:
        """Nothing is known: a commit failed."""
        self.state = None
        self.filled.clear()

    def expect(self, operations: Operations) -> None:
        """These are about to be written. They may land or not, so only what is right in both cases stays."""
        self.state = None
        for name in operations.puts:
            if not self.filled.get(name):
                self.filled.pop(name, None)
        for name in operations.deletes:
            self.filled.pop(name, None)
