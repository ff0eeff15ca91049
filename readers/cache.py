"""What a reader has decoded and may serve again. Bounded; entries go when a change names them.

A record is kept from its second read on: keeping what is read once would cost more than reading it, fresh memory for
each record, and its release when it makes room for the next. What was read once is marked. When more names have been
read than fit, marks are given up, and one read in a few is kept: what is read often is kept soon all the same, and a
working set that does not fit costs no more than no cache at all.

Look-ups pay nothing for the bound: there is no list of recent use. When the cache is full, the half that was kept
first is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from dspy_registry.registry_store.changes import Change
from dspy_registry.registry_store.records import ModuleInfo

Answers = dict[Any, tuple[str, ...]]

_NAMES_PER_RECORD: Final = 8
_ONE_IN: Final = 16


class Cache:
    """Records by what was asked, and answers of queries. Not locked: its owner changes it inside the gate.

    `size` bounds the records; the names in answers are bounded at eight times as many. 0: nothing is kept.
    Answers are kept by capability, by category, and by all the arguments of `find`.
    """

    __slots__ = (
        "_budget",
        "_declined",
        "_dependents",
        "_full_budget",
        "by_capability",
        "by_category",
        "by_question",
        "marks",
        "marks_bound",
        "records",
        "size",
    )

    def __init__(self, size: int) -> None:
        self.size = size
        self.marks_bound = size  # 0 once they have been given up
        self._declined = 0
        self.records: dict[str, ModuleInfo] = {}
        self.marks: set[str] = set()
        self.by_capability: Answers = {}
        self.by_category: Answers = {}
        self.by_question: Answers = {}
        self._dependents: dict[str, list[tuple[Answers, Any]]] = {}
        self._budget = self._full_budget = size * _NAMES_PER_RECORD

    def __repr__(self) -> str:
        answers = len(self.by_capability) + len(self.by_category) + len(self.by_question)
        return f"Cache({len(self.records)} records, {answers} answers, size={self.size})"

    @property
    def is_empty(self) -> bool:
        """Whether no look-up can hit."""
        return not (self.records or self.by_capability or self.by_category or self.by_question)

    def is_due(self, asked: str) -> bool:
        """Whether what was read now is worth keeping; remembers that it was read."""
        if asked in self.marks:
            return True
        if len(self.marks) < self.marks_bound:
            self.marks.add(asked)
            return False
        self.marks_bound = 0
        self.marks.clear()
        self._declined += 1
        if self._declined < _ONE_IN or not self.size:
            return False
        self._declined = 0
        return True

    def put(self, asked: str, info: ModuleInfo) -> None:
        """Keep a record under the string that was asked."""
        if len(self.records) >= self.size:
            self.records = dict(islice(self.records.items(), (self.size + 1) // 2, None))
        self.records[asked] = info

    def put_answer(self, answers: Answers, question: Any, terms: Iterable[str], names: tuple[str, ...]) -> None:
        """Keep the answer of a query, in one of the three dictionaries, until one of these terms changes."""
        weight = len(names) + 1
        if weight > self._budget:
            self.forget_answers()
            if weight > self._budget:
                return
        # Not given back when an answer is dropped: what is kept of the question elsewhere stays until all is forgotten.
        self._budget -= weight
        answers[question] = names
        for term in terms:
            self._dependents.setdefault(term, []).append((answers, question))

    def drop(self, change: Change) -> None:
        """Forget whatever a change may have made untrue."""
        if change.everything:
            self.forget()
            return
        for key in change.keys:
            self.records.pop(key, None)
        for term in change.terms:
            for answers, question in self._dependents.pop(term, ()):
                answers.pop(question, None)

    def forget(self) -> None:
        """Forget everything. The dictionaries stay the same objects, emptied."""
        self.records.clear()
        self.marks.clear()
        self.marks_bound = self.size
        self.forget_answers()

    def forget_answers(self) -> None:
        """Forget the answers of queries."""
        for answers in (self.by_capability, self.by_category, self.by_question):
            answers.clear()
        self._dependents.clear()
        self._budget = self._full_budget
