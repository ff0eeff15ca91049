"""Whether this process is still the registry's one writer: all is as its last commit left it.

A writer.lock that was deleted can be locked by a second writer. A lock.mdb that was overwritten, as every reader may,
makes LMDB count its transactions from the start, and what is committed then is lost at the next opening. Both come from
outside, and neither is an error to LMDB. So each commit looks first, and looks at the writer lock again before it is
acknowledged: the second writer may have come while the first stored its word.
"""

from __future__ import annotations

from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import StoreError
from dspy_registry.registry_store.handles import Transaction
from dspy_registry.registry_store.revision import RevisionFile, is_retired
from dspy_registry.writer.recovery import recover_word
from dspy_registry.writer.writer_lock import WriterLock

_REMEDY = "Stop every process that uses this registry, then start one writer."


class Ownership:
    """What a writer left behind. Call it inside the write gate. All methods but `note` raise StoreError.

    `lost` is what was raised first. From then on the writer may commit nothing.
    """

    def __init__(self, environment: Environment, revision_file: RevisionFile, lock: WriterLock) -> None:
        self._environment = environment
        self._revision_file = revision_file
        self._lock = lock
        self.lost: StoreError | None = None
        self.note(environment.newest_transaction())

    def recover(self) -> None:
        """After a commit that failed: make the word right, and go on from there."""
        if not self._lock.has_stayed():
            raise self._without_lock()
        if not recover_word(self._environment, self._revision_file):
            raise self._replaced(f"{self._revision_file.path.name} was changed by another process")
        self.confirm()
        self.note(self._environment.newest_transaction())

    def note(self, transaction: int) -> None:
        """This is the number of the last transaction, and the word is right."""
        self._word = self._revision_file.word[()]
        self._transaction = transaction

    def verify(self, txn: Transaction) -> int:
        """Look at everything. `txn` is the write transaction: no other writer commits meanwhile. Returns its number."""
        if not self._lock.has_stayed():
            raise self._without_lock()
        if self._revision_file.word[()] != self._word:
            raise self._replaced(f"{self._revision_file.path.name} was changed by another process")
        number: int = txn.id()
        if number != self._transaction + 1:
            raise self._replaced(f"lock.mdb counts {number - 1} transactions, data.mdb {self._transaction}")
        return number

    def confirm(self) -> None:
        """Before an acknowledgement. Where a second writer has retired the file, this one may have stored over that."""
        if not self._lock.has_stayed():
            self._revision_file.retire()
            raise self._without_lock()
        if is_retired(self._revision_file.word[()]):
            raise self._replaced(f"{self._revision_file.path.name} was retired by another process")

    def _without_lock(self) -> StoreError:
        return self._replaced(f"{self._lock.path.name} was deleted or replaced")

    def _replaced(self, how: str) -> StoreError:
        self.lost = StoreError(
            f"{self._environment.folder}: {how} while this writer was open, so it writes no more.", remedy=_REMEDY
        )
        return self.lost
