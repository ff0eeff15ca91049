"""The origin: clients' changes become changes of the cluster, in groups, each group one transaction.

    queue -> stage on what this host has applied -> compare `head` and put -> the mirror passes it -> answer

A transaction goes through only if nothing has changed since the revision that it was staged on. Otherwise it is staged
again, behind what came first. So every change is decided on the newest state of the cluster. Registrations need not be
staged again behind changes of other modules, nor wait until this host shows those: see `ahead`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from dspy_registry.registry_store.errors import (
    BusyError,
    ClusterUnavailableError,
    CorruptRecordError,
    RegistryError,
)
from dspy_registry.writer import failpoints
from dspy_registry.writer.aliases import AliasIndex
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.cluster.answers import stored_answers, visible
from dspy_registry.writer.cluster.batches import Batch, batch_codec, copy_out, in_pieces, tidy, upload
from dspy_registry.writer.cluster.decision import UNAVAILABLE_SECONDS, Decision
from dspy_registry.writer.cluster.engine import Engine, KeyValue, Outcome
from dspy_registry.writer.cluster.group_staging import is_global, may_move, names_read, staged_group
from dspy_registry.writer.cluster.keys import Keys, head_codec
from dspy_registry.writer.cluster.mirror import Mirror
from dspy_registry.writer.cluster.program_collector import ProgramCollector
from dspy_registry.writer.cluster.program_staging import document_of
from dspy_registry.writer.cluster.staged import Staged
from dspy_registry.writer.cluster.staging import GlobalRequest
from dspy_registry.writer.daemon.group import Group, Work
from dspy_registry.writer.daemon.host import Host, LocalWork, Submitted
from dspy_registry.writer.daemon.reply_cache import ReplyCache
from dspy_registry.writer.daemon.requests import ClientRequest
from dspy_registry.writer.draft import Draft

CONFLICT_SECONDS: Final = 2.0
CONFLICTS: Final = 20
"""A change that other hosts overtook so often, and for so long, is refused."""
_SHOWN_SECONDS: Final = 10.0  # for this host to show what the cluster has accepted
_MOST_WAITING: Final = 4096  # requests
_MOST_HELD: Final = 192 * 1024 * 1024  # bytes of requests
_MOST_PATIENT: Final = 0.004  # seconds, of some ten that a transaction and its commit take
_WHILE_OTHERS_GO: Final = 0.02  # seconds, while it is another host's turn in any case
_GROUP: Final = 48  # requests that are tried in one transaction
_SMALL_GROUP: Final = 2
_SMALL_BYTES: Final = 16 * 1024  # of requests
_UNSEEN: Final = "this host has not seen the cluster's newest change yet. Nothing was changed."
T = TypeVar("T")
_log = logging.getLogger("dspy_registry")


class Origin:
    """Takes the changes of this host's clients to the cluster. Belongs to the daemon's loop."""

    def __init__(self, host: Host, engine: Engine, keys: Keys, mirror: Mirror) -> None:
        self._host = host
        self._engine = engine
        self._keys = keys
        self._mirror = mirror
        self._waiting: deque[GlobalRequest] = deque()
        self._regulars = 1  # requests of the last group
        self._is_at_work = False  # a group is being carried out
        self._held = 0  # bytes of what is taken and not answered
        self._arrived = asyncio.Event()
        self._replies: ReplyCache | None = None  # None: to be read from the cluster
        self._collector = ProgramCollector(host, keys, mirror.programs)
        self._aliases = AliasIndex()
        self._decision = Decision(engine, keys)
        self.refusal: RegistryError | None = None
        """Why no change is taken at all; None: they are taken."""
        self.conflicts = 0
        self.changes = 0

    def take(self, request: Work) -> bool:
        """Take a client's change, if it is a global one. False: it is of this host alone."""
        if not is_global(request):
            return False
        assert isinstance(request, ClientRequest)
        self._put(GlobalRequest(request))
        return True

    async def submit(self, stage: Callable[[Draft], T], held: Mapping[bytes, int]) -> Submitted[T]:
        """Carry out a change of this daemon for all hosts, if the keys `held` are still at these revisions.

        Raises what `stage` raises, ClusterUnavailableError, LostLeadError.
        """
        future: asyncio.Future[Submitted[T]] = asyncio.get_running_loop().create_future()
        work = GlobalRequest(LocalWork(stage, future))
        work.held = held
        self._put(work)
        return await future

    def _put(self, work: GlobalRequest) -> None:
        if len(self._waiting) >= _MOST_WAITING or self._held > _MOST_HELD:
            self._held += work.held_bytes
            self._answer(work, work.failure(BusyError(f"{len(self._waiting)} changes wait for the cluster.")))
            return
        self._held += work.held_bytes
        self._waiting.append(work)
        self._arrived.set()

    @property
    def waiting(self) -> int:
        """Requests that are taken and not yet in a group."""
        return len(self._waiting)

    async def run(self) -> None:
        """Carry out what is taken, until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                await self._carry_out_some()

    async def drain(self, seconds: float) -> None:
        """At the stop: wait so long for what was taken to be carried out."""
        deadline = time.monotonic() + seconds
        while (self._waiting or self._is_at_work) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def refuse_all(self, error: RegistryError) -> None:
        """Answer all that waits with an error."""
        self._answer_all([self._waiting.popleft() for _ in range(len(self._waiting))], error)

    async def _gather(self) -> None:
        """Wait a moment for a group to become as large as the last one: clients answered together send together.

        The moment is longer while other hosts have their turns: a change with fewer requests costs as much.
        """
        began = time.monotonic()
        while len(self._waiting) < self._regulars:
            seconds = time.monotonic() - began
            if seconds > (_MOST_PATIENT if self._mirror.turns.left == 0 else _WHILE_OTHERS_GO):
                return
            await asyncio.sleep(_MOST_PATIENT / 4)

    async def _carry_out_some(self) -> None:
        await self._gather()
        works = [self._waiting.popleft()]
        while self._waiting and len(works) < _GROUP and not (works[-1].held or self._waiting[0].held):
            works.append(self._waiting.popleft())
        self._regulars = len(works)
        self._is_at_work = True
        try:
            if self.refusal is not None:
                raise self.refusal
            await self._carry_out(works)
        except RegistryError as error:
            if isinstance(error, ClusterUnavailableError):
                self._replies = None  # a change may have gone through: then its answers are in the cluster
            self._answer_all(works, error)
        except asyncio.CancelledError:
            self._answer_all(works, _stopping())
            raise
        except Exception as error:
            _log.exception("the cluster's origin failed")
            self._answer_all(works, error)
        finally:
            self._is_at_work = False
            self._mirror.backlog.expect(False)

    def _answer_all(self, works: Sequence[GlobalRequest], error: BaseException) -> None:
        for work in works:
            self._answer(work, work.failure(error))

    def _answer(self, work: GlobalRequest, answer: Any) -> None:
        if work.is_answered:
            return
        work.is_answered = True
        self._held -= work.held_bytes
        try:
            work.resolve(answer)
        except Exception:
            _log.exception("an answer could not be delivered")

    # Before the first change

    async def _make_ready(self) -> None:
        """This host shows the cluster's head, and the answers given before are known."""
        if self._replies is not None:
            return
        await _within(self._mirror.is_listed.wait(), UNAVAILABLE_SECONDS, "this host has not seen the cluster yet.")
        await tidy(self._engine, self._keys)
        stored = await stored_answers(self._engine, self._keys, self._host.environment.dbs.format)
        head = (await self._engine.range_at(self._keys.head)).items
        if head:
            await self._shown(head[0].revision)
        self._replies = ReplyCache()
        for client, answers in stored:
            self._replies.keep(client, tuple(visible(answer, self._host.revision) for answer in answers))
        await self._collect(False)

    async def _shown(self, revision: int) -> int:
        return await _within(
            self._mirror.passed(revision),
            _SHOWN_SECONDS,
            f"this host does not show global revision {revision} yet, and the change may have been made.",
        )

    # A group

    async def _carry_out(self, works: Sequence[GlobalRequest]) -> None:
        began, tries, turns = time.monotonic(), 0, self._mirror.turns
        staged: Staged | None = None
        while True:
            tries += 1
            await self._make_ready()  # another part of the group may have failed meanwhile
            staged = await self._staged_in_turn(works, staged)
            asked_at = time.monotonic()
            if len(works) > 1 and staged.is_for_one_alone:
                await self._carry_out(works[: len(works) // 2])
                await self._carry_out(works[len(works) // 2 :])
                return
            await self._put_programs(staged)
            marker = await self._put_aside(staged) if staged.is_too_large else None
            outcome = await self._decision.of(staged)
            if outcome.succeeded:
                failpoints.reach("after_decision")
                revision = await self._shown(outcome.revision) if staged.puts else self._host.revision
                turns.took(time.monotonic() - asked_at)
                self._conclude(staged, revision)
                if marker is not None:
                    await self._copy_out(KeyValue(marker, staged.puts[marker], outcome.revision))
                await self._collect(staged.frees)
                return
            if marker is not None:
                await tidy(self._engine, self._keys)
            self._collector.is_due = self._collector.is_due or bool(staged.programs)
            self.conflicts += 1
            turns.refused()
            if self._is_own(outcome):
                self._replies = None  # a change that was given up has come through late, and its answers
            if staged.names is None:
                staged = None
            if time.monotonic() - began > CONFLICT_SECONDS and tries >= CONFLICTS:
                raise BusyError("other hosts change the cluster so often that this change found no turn.")
            await _within(self._mirror.ahead.reached(outcome.revision), _SHOWN_SECONDS, _UNSEEN)

    async def _staged_in_turn(self, works: Sequence[GlobalRequest], staged: Staged | None) -> Staged:
        """A group staged on the newest state that is known, once it is this host's turn.

        Registrations are staged while it waits, and move behind what comes meanwhile, if that is of other modules.
        `staged` is the same group for an earlier try; None: this is the first.
        """
        ahead = self._mirror.ahead
        if staged is None and may_move(works):
            staged = await self._staged(works)
            self._mirror.backlog.expect(staged.names is not None)
        await self._mirror.turns.wait()
        moved = ahead.moved(staged) if staged is not None and self._is_as_read(staged) else None
        if moved is None:
            await self._shown(ahead.head)
            staged = await self._staged(works)
            moved = ahead.moved(staged) or staged
        return moved

    async def _staged(self, works: Sequence[GlobalRequest]) -> Staged:
        """Stage a group, in a thread unless it takes less than changing threads does."""
        if len(works) <= _SMALL_GROUP and sum(work.held_bytes for work in works) <= _SMALL_BYTES:
            return self._stage(works)
        return await asyncio.to_thread(self._stage, works)

    def _stage(self, works: Sequence[GlobalRequest]) -> Staged:
        assert self._replies is not None
        environment = self._host.environment
        with environment.long_read() as txn:
            catalog = Catalog(txn, environment.dbs, self._aliases)
            group = Group(works, self._replies)
            staged = staged_group(catalog, self._keys, self._mirror.position, group, works[0].held)
            staged.names = names_read(works, staged, catalog)
        return staged

    def _is_as_read(self, staged: Staged) -> bool:
        """Whether this host still has the records that it read: manifests and discovery change them, too."""
        environment = self._host.environment
        with environment.reading() as txn:
            rows = environment.dbs.modules
            return all(txn.get(name, None, rows) == record for name, record in (staged.names or {}).items())

    async def _put_programs(self, staged: Staged) -> None:
        for digest, pieces in staged.programs.items():
            self._collector.is_due = True  # until the change that names it is through
            staged.expected.update(await self._mirror.programs.put(digest, partial(self._document, digest, pieces)))

    async def _document(self, digest: bytes, pieces: Sequence[bytes]) -> bytes:
        return await asyncio.to_thread(document_of, self._host.environment, digest, pieces)

    async def _collect(self, frees: bool) -> None:
        self._collector.is_due = self._collector.is_due or frees
        await self._collector.collect()

    async def _put_aside(self, staged: Staged) -> bytes:
        """Put the records of a large change aside; a marker is to show them. Returns its key."""
        name = staged.change.hex().encode()
        pieces = in_pieces(staged.records)
        prefix = self._keys.pieces + self._keys.host + b"/" + name + b"/"
        staged.expected.update(await upload(self._engine, prefix, pieces))
        failpoints.reach("after_upload")
        marker = self._keys.batches + self._keys.host + b"/" + name
        staged.puts.clear()
        staged.removed.clear()  # a later change of the same modules removes them
        staged.puts[marker] = batch_codec.dump(Batch(len(pieces), staged.position.number + 1))
        return marker

    async def _copy_out(self, marker: KeyValue) -> None:
        """Nothing is lost when this fails: the pieces are read instead, and the next start tries again."""
        failpoints.reach("before_copying")
        try:
            await copy_out(self._engine, self._keys, marker)
        except RegistryError as error:
            _log.warning("a batch stays in pieces: %s", error)
            self._replies = None

    def _is_own(self, outcome: Outcome) -> bool:
        """Whether the head that refused a group is of this host."""
        found = outcome.found.get(self._keys.head)
        with suppress(CorruptRecordError):  # of another release
            return found is not None and head_codec.load(found.value or b"").host == self._mirror.position.host
        return False

    def _conclude(self, staged: Staged, revision: int) -> None:
        self._mirror.backlog.expect(False)
        self.changes += bool(staged.puts)
        for work, answer in staged.group.conclude(revision):
            assert isinstance(work, GlobalRequest)
            self._answer(work, answer if isinstance(answer, Submitted) else visible(answer, revision))


async def _within(waited: Awaitable[T], seconds: float, problem: str) -> T:
    try:
        return await asyncio.wait_for(waited, seconds)
    except asyncio.TimeoutError as error:
        raise ClusterUnavailableError(problem) from error


def _stopping() -> ClusterUnavailableError:
    return ClusterUnavailableError("the writer daemon is stopping, and the change may have been made.")
