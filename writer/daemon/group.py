"""One group: several requests staged on one draft. Each succeeds or fails alone."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import lmdb

from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.protocol import Effect, Failed, Remembered, remembered_codec
from dspy_registry.registry_store.records import By
from dspy_registry.writer.daemon.reply_cache import ReplyCache, cached_reply, following, overtaken
from dspy_registry.writer.draft import Draft

_log = logging.getLogger("dspy_registry")


class Work:
    """Something to be committed.

    `client` is empty for the daemon's own changes. `by` is whose process asks for it; None: it is the daemon's own.
    `id`, `oldest` and `repeats` are the request's. `held_bytes` is the memory that the work takes.
    `is_background`: nobody waits for it, so it may rest beside works of clients.
    """

    client = b""
    by: By | None = None
    held_bytes = 0
    is_background = False
    id = 0
    oldest = 0
    repeats: tuple[int, ...] = ()

    def stage(self, draft: Draft) -> None:
        """Stage it. An exception fails this work alone. Commit thread."""
        raise NotImplementedError

    def is_in_force(self, draft: Draft, error: RegistryError) -> bool:
        """Whether staging failed with `error` only because the effect of an equal request is already in force."""
        return False

    def success(self, revision: int) -> Any:
        """The answer once it is committed. Commit thread."""
        raise NotImplementedError

    def failure(self, error: BaseException) -> Any:
        """The answer to a work that had no effect. Commit thread."""
        raise NotImplementedError

    def answer_at_once(self, answer: Any) -> None:
        """Send the answer if that needs no wait. `resolve` follows in any case. Commit thread."""

    def resolve(self, answer: Any) -> None:
        """Hand the answer to the requester. Loop thread."""
        raise NotImplementedError


@dataclass
class _Staged:
    """One client within this group: its works, and its answers from before this group."""

    before: tuple[Effect, ...]
    works: list[Work] = field(default_factory=list)
    has_effect: bool = False


class Group:
    """Works to be committed together. `stage` them, commit, then `conclude` with the revision of the commit.

    Staging ends before a work that would take it beyond `seconds`, though never before the first: `left` are those that
    were not staged. `expected` tells how long a work will take, as far as it is known. `took` has the
    seconds of processor time that each took: that others made it wait is not its fault.
    """

    def __init__(
        self,
        works: Sequence[Work],
        replies: ReplyCache,
        seconds: float = math.inf,
        expected: Callable[[Work], float] = lambda work: 0.0,
    ) -> None:
        self._works = works
        self._seconds = seconds
        self._expected = expected
        self.left: Sequence[Work] = ()
        self.took: dict[Work, float] = {}
        self._replies = replies
        self._clients: dict[bytes, _Staged] = {}
        self._answers: dict[Work, Any] = {}  # to works that need no commit
        self._twins: dict[Work, Work] = {}
        self._stored: dict[bytes, tuple[Effect, ...]] = {}
        self._forgets = False

    def stage(self, draft: Draft) -> None:
        """Stage every work on the draft, or note its failure. Raises lmdb.Error."""
        began = at = time.monotonic()
        used = time.thread_time()
        for number, work in enumerate(self._works):
            if number and at - began + self._expected(work) > self._seconds:
                self._works, self.left = self._works[:number], self._works[number:]
                break
            try:
                if not self._was_sent_before(work):
                    self._stage(work, draft)
            except lmdb.Error:
                raise
            except Exception as error:
                if not isinstance(error, RegistryError):
                    _log.exception("internal error in a request")
                self._answers[work] = work.failure(error)
            at = time.monotonic()
            used, before = time.thread_time(), used
            self.took[work] = used - before
        if draft.has_effect:
            self._remember(draft)

    def _was_sent_before(self, work: Work) -> bool:
        if not work.client:
            return False
        staged = self._clients.get(work.client)
        if staged is None:
            staged = self._clients[work.client] = _Staged(self._replies.of(work.client))
        for earlier in staged.works:
            if earlier.id == work.id:
                self._twins[work] = earlier
                return True
        given = cached_reply(staged.before, work.id)
        if given is None and staged.works and work.id < staged.works[-1].id:
            given = overtaken(work.id, staged.works[-1].id)
        if given is None:
            staged.works.append(work)
            return False
        self._answers[work] = given
        return True

    def _stage(self, work: Work, draft: Draft) -> None:
        child = draft.child(work.by)
        try:
            work.stage(child)
        except RegistryError as error:
            if not (self._has_succeeded_before(work) and work.is_in_force(draft, error)):
                raise
            return
        if child.has_effect:
            draft.absorb(child)
            if work.client:
                self._clients[work.client].has_effect = True

    def _has_succeeded_before(self, work: Work) -> bool:
        """Whether an earlier request with the same content, which this work names, was carried out."""
        staged = self._clients.get(work.client)
        if staged is None or not work.repeats:
            return False
        done = {answer.id for answer in staged.before if not isinstance(answer, Failed)}
        done.update(earlier.id for earlier in staged.works if earlier is not work and earlier not in self._answers)
        return not done.isdisjoint(work.repeats)

    def _remember(self, draft: Draft) -> None:
        self._forgets = True
        for client in self._replies.forgotten:
            draft.remember(client, None)
        for client, staged in self._clients.items():
            if staged.has_effect:
                draft.remember(client, self._storing(client, staged, draft.catalog.format))

    def _storing(self, client: bytes, staged: _Staged, format: int) -> Callable[[int], bytes]:
        def stored(revision: int) -> bytes:
            self._stored[client] = answers = self._following(staged, revision)
            return remembered_codec.dump(Remembered(revision, answers), client, format)

        return stored

    def _following(self, staged: _Staged, revision: int) -> tuple[Effect, ...]:
        added = [self._answer(work, revision) for work in staged.works]
        return following(staged.before, staged.works[-1].oldest, added)

    def conclude(self, revision: int) -> list[tuple[Work, Any]]:
        """The answer to each work. Also puts the answers into the reply cache. Call it once, after the commit."""
        if self._forgets:
            self._replies.forgotten.clear()
        for client, staged in self._clients.items():
            if staged.works:
                self._replies.keep(client, self._stored.get(client) or self._following(staged, revision))
        return [(work, self._answer(work, revision)) for work in self._works]

    def _answer(self, work: Work, revision: int) -> Any:
        work = self._twins.get(work, work)
        answer = self._answers.get(work)
        if answer is None:
            answer = self._answers[work] = work.success(revision)
        return answer
