"""Whether a read transaction began on a commit that was visible.

To begin a read, LMDB takes the number of the newest visible transaction, and then copies the meta page of that number's
parity. A reader that is descheduled in between may copy the meta page of the second commit after it, which is not
visible yet: it may still fail, or be half written. The words tell. The first of the two commits became visible, and
stored its word, before the second could begin. So a transaction counts only if both words are the same before and after
its beginning, and nothing is read from it until that is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dspy_registry.registry_store.errors import StoreError
from dspy_registry.registry_store.handles import Transaction
from dspy_registry.registry_store.revision import RevisionFile, is_retired

Words = tuple[float, float]


class Visibility:
    """The mapping of the revision file that an environment's reads are compared with. Use it inside the gate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: RevisionFile | None = None
        self._is_new = False  # mapped for LMDB's opening just now: to look again would cost an opening a fiftieth

    def file(self) -> RevisionFile:
        """The revision file that is in the folder now. Raises RegistryNotFoundError, StoreError."""
        file, is_new, self._is_new = self._file, self._is_new, False
        if file is None or not (is_new or file.is_current()):
            file = self._file = RevisionFile(self._folder)
        return file

    def let_go(self) -> None:
        """Drop the mapping and its descriptor: since Python 3.13 an error's traceback may keep this object alive."""
        self._file = None

    def words(self) -> Words | None:
        """Word and usage word as they are now. None: there is no revision file in force."""
        file = self._file
        if file is None or is_retired(word := file.word[()]):
            try:
                file = self.file()
                self._is_new = True
            except StoreError:
                self._file = None
                return None
            word = file.word[()]
        return None if is_retired(word) else (word, file.usage_word[()])

    def held(self, before: Words | None, txn: Transaction, env: Any) -> bool:
        """Whether what `txn` began on was visible. `before` are the words from before its beginning.

        Without words a writer is creating the registry, or was killed while it made a new identity. Then LMDB's meta
        pages are compared, which costs more: none of them may be of the second commit after that of `txn`.
        """
        if before is not None:
            return self.is_still(before)
        newest: int = env.info()["last_txnid"]
        began: int = txn.id()
        return newest <= began + 1

    def is_still(self, before: Words | None) -> bool:
        """Whether both words are what they were. None, for no words, is taken for that."""
        file = self._file
        return before is None or file is None or (file.word[()], file.usage_word[()]) == before
