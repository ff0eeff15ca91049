"""What a reader has decoded and may return again. It is bounded, and a change drops the entries that it names.

A record is kept from its second read on. Keeping every record would cost more than reading it again, because each needs
new memory, which is released when another record takes its place. A name that was read once is marked. When more names
were read than fit, there are no more marks, and one read in 32 is kept. Records that are read often are then still
kept soon, and a working set that does not fit costs no more than having no cache.

The bound does not slow look-ups down, because there is no list of recent use. A full cache forgets its oldest
eighth.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from dspy_registry.registry_store.changes import Change
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.revision import RETIRED
from dspy_registry.registry_store.selection import Selection, split
from dspy_registry.registry_store.usage import ModuleUsage
from dspy_registry.registry_store.usage_rows import InForce

Results = dict[Any, tuple[str, ...]]

_NAMES_PER_RECORD: Final = 8
_ONE_IN: Final = 32
_FORGOTTEN_AT_ONCE: Final = 8  # the share that is forgotten: one in this number
_USAGES_KEPT: Final = 4096


class Cache:
    """Records and selections by the name that was asked, and results of queries.

    It has no lock: its owner changes it inside the gate.

    `size` is the most records that it keeps, 0 for none. Its results hold at most eight times as many names.
    Results are kept by capability, by category, and by all the arguments of `find`.
    """

    __slots__ = (
        "_budget",
        "_dependents",
        "_full_budget",
        "_versioned",
        "by_arguments",
        "by_capability",
        "by_category",
        "declines",
        "marks",
        "marks_bound",
        "records",
        "selections",
        "size",
    )

    def __init__(self, size: int) -> None:
        self.size = size
        self.marks_bound = size  # 0: no more marks
        self.declines = _ONE_IN - 1  # how many reads to pass by until one is kept, when there are no marks
        self.records: dict[str, ModuleInfo] = {}
        self.selections: dict[str, Selection] = {}
        self._versioned: dict[str, set[str]] = {}  # what was asked with an @, by the name before it
        self.marks: set[str] = set()
        self.by_capability: Results = {}
        self.by_category: Results = {}
        self.by_arguments: Results = {}
        self._dependents: dict[str, list[tuple[Results, Any]]] = {}
        self._budget = self._full_budget = size * _NAMES_PER_RECORD

    def __repr__(self) -> str:
        results = len(self.by_capability) + len(self.by_category) + len(self.by_arguments)
        return f"Cache({len(self.records)} records, {results} results, size={self.size})"

    @property
    def is_empty(self) -> bool:
        """Whether no look-up can hit."""
        kept = self.records or self.selections or self.by_capability or self.by_category or self.by_arguments
        return not kept

    def is_due(self, asked: str) -> bool:
        """Whether the record of this name is worth keeping. Remembers that it was read."""
        if asked in self.marks:
            return True
        if len(self.marks) < self.marks_bound:
            self.marks.add(asked)
            return False
        self.declines -= 1
        return self.declines < 0 and self.keeps_one()

    def keeps_one(self) -> bool:
        """When there is no room for marks and no read is left to pass by: whether to keep this one."""
        self.declines = _ONE_IN - 1
        self.marks_bound = 0
        self.marks.clear()
        return self.size > 0

    def put(self, asked: str, info: ModuleInfo) -> None:
        """Keep a record under the string that was asked."""
        if len(self.records) >= self.size:
            for oldest in list(islice(self.records, -(-self.size // _FORGOTTEN_AT_ONCE))):
                del self.records[oldest]
            self._forget_versions_of_others()
        self.records[asked] = info
        if "@" in asked:
            self._versioned.setdefault(split(asked)[0], set()).add(asked)

    def put_selection(self, asked: str, selection: Selection) -> None:
        """Keep what was asked, resolved as far as it can be without a key."""
        if len(self.selections) >= max(self.size, 1):
            self.selections.clear()
            self._forget_versions_of_others()
        self.selections[asked] = selection
        self._versioned.setdefault(split(asked)[0], set()).add(asked)

    def _forget_versions_of_others(self) -> None:
        """Forget which versions depend on which name, but for those that are kept."""
        self._versioned.clear()
        for asked in (*self.records, *self.selections):
            if "@" in asked:
                self._versioned.setdefault(split(asked)[0], set()).add(asked)

    def put_result(self, results: Results, arguments: Any, terms: Iterable[str], names: tuple[str, ...]) -> None:
        """Keep a query's result in one of the three dictionaries, until one of these terms changes."""
        weight = len(names) + 1
        if weight > self._budget:
            self.forget_results()
            if weight > self._budget:
                return
        # Not given back when a result is dropped: its entries in `_dependents` stay until everything is forgotten.
        self._budget -= weight
        results[arguments] = names
        for term in terms:
            self._dependents.setdefault(term, []).append((results, arguments))

    def drop(self, change: Change) -> None:
        """Forget everything that a change may have made untrue."""
        if change.everything:
            self.forget()
            return
        for key in change.keys:
            self.records.pop(key, None)
            self.selections.pop(key, None)
            if key in self._versioned:
                for asked in self._versioned.pop(key):
                    self.records.pop(asked, None)
                    self.selections.pop(asked, None)
        for term in change.terms:
            for results, arguments in self._dependents.pop(term, ()):
                results.pop(arguments, None)

    def forget(self) -> None:
        """Forget everything. The dictionaries are emptied and stay the same objects."""
        self.records.clear()
        self.selections.clear()
        self._versioned.clear()
        self.marks.clear()
        self.marks_bound = self.size
        self.forget_results()

    def forget_results(self) -> None:
        """Forget the results of queries."""
        for results in (self.by_capability, self.by_category, self.by_arguments):
            results.clear()
        self._dependents.clear()
        self._budget = self._full_budget


class UsageCache:
    """Usage by full name, as of one usage word. When the word has changed, a new cache takes its place.

    Usage has its own cache because it changes every second, and the modules do not. What belongs to a version in force
    is valid only while the revision word is `revision_word` too.
    """

    __slots__ = ("costs", "in_force", "revision_word", "rows", "word")

    def __init__(self, word: float = RETIRED) -> None:
        self.word = word
        self.revision_word = RETIRED
        self.in_force: dict[str, InForce] = {}
        self.rows: dict[str, ModuleUsage] = {}
        self.costs: dict[str, float | None] = {}

    def put(self, name: str, usage: ModuleUsage) -> None:
        """Keep usage that was read in a transaction begun after `word` was read."""
        self.rows[name] = usage
        self.costs[name] = usage.cost_usd_per_call

    def put_in_force(self, asked: str, revision_word: float, found: InForce) -> None:
        """Keep what was read in a transaction begun after both words were read, under the string that was asked."""
        if self.revision_word != revision_word:
            self.in_force = {}
            self.revision_word = revision_word
        self.in_force[asked] = found

    @property
    def is_full(self) -> bool:
        """Whether it holds as many rows as it may."""
        return max(len(self.rows), len(self.in_force)) >= _USAGES_KEPT
