"""Group commit: what shares a commit, who fails alone, and that a request sent twice has the effect of once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dspy_registry import ConflictError, Registry
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.protocol import (
    WINDOW,
    Applied,
    Done,
    Failed,
    Part,
    RegisterMany,
    RemoveAlias,
    SetAlias,
    SetImplications,
    Unregister,
)
from dspy_registry.registry_store.wire_errors import unpack
from dspy_registry.writer.daemon.group import Group, Work
from dspy_registry.writer.daemon.group_commit import staging_seconds
from dspy_registry.writer.daemon.reply_cache import CLIENTS_KEPT, ReplyCache, following
from dspy_registry.writer.daemon.requests import ClientRequest, SingleRequest
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.store import Store
from tests.support.daemon_process import daemon, daemon_of, module, registration

A, B = b"a" * 16, b"b" * 16
SLOW = {"DSPY_REGISTRY_FAILPOINTS": "before_commit=sleep:100"}


class Groups:
    """Groups committed to a store, without sockets and threads."""

    def __init__(self, folder: Path, limit: int = CLIENTS_KEPT) -> None:
        self.store = Store(folder)
        self.replies = ReplyCache.load(self.store.environment, limit)

    def commit(self, *works: Work) -> list[Any]:
        group = Group(works, self.replies)
        revision = self.store.committer.commit(group.stage)
        return [answer for _, answer in group.conclude(revision)]

    def stored(self) -> set[bytes]:
        environment = self.store.environment
        with environment.reading() as txn:
            return {bytes(key) for key, _ in txn.cursor(environment.dbs.requests)}


@pytest.fixture
def groups(registry_folder: Path) -> Iterator[Groups]:
    opened = Groups(registry_folder)
    yield opened
    opened.store.close()


def request(client: bytes, message: Any) -> ClientRequest:
    return SingleRequest(client, message, lambda request, answer: None)


def register(
    client: bytes, number: int, name: str, expected: int | None = None, *, oldest: int = 0, **fields: Any
) -> Work:
    return request(client, registration(number, module(name, **fields), expected, oldest=oldest))


def kind(answer: Any) -> str:
    return answer.kind if isinstance(answer, Failed) else type(answer).__name__


# One group


def test_a_group_is_one_revision(groups: Groups) -> None:
    answers = groups.commit(*(register(os.urandom(16), 1, f"acme.m{n}") for n in range(64)))
    assert answers == [Done(1, 2)] * 64


def test_each_fails_alone(groups: Groups, registry_folder: Path) -> None:
    answers = groups.commit(
        register(A, 1, "acme.first"),
        register(A, 2, "acme.bad name\n"),
        register(A, 3, "acme.first", expected=4, category="other"),
        request(A, Unregister(4, 1, "acme.none")),
        request(A, SetAlias(5, 1, "alias", "acme.none")),
        request(A, RemoveAlias(6, 1, "alias")),
        request(A, SetImplications(7, 1, {"a": ("b",), "b": ("a",)})),
        register(B, 1, "acme.last"),
    )
    unknown = ["UnknownModuleError", "UnknownModuleError", "UnknownAliasError"]
    kinds = ["Done", "InvalidModuleError", "ConflictError", *unknown, "VocabularyError", "Done"]
    assert [kind(answer) for answer in answers] == kinds
    assert {answer.revision for answer in answers if isinstance(answer, Done)} == {2}
    with Registry(registry_folder) as registry:
        assert registry.get_module("acme.first") == module("acme.first")
        assert "acme.last" in registry


def test_a_failure_half_way_leaves_no_trace(groups: Groups, registry_folder: Path) -> None:
    class HalfWay(Work):
        def stage(self, draft: Draft) -> None:
            draft.register(module("acme.half"))
            draft.set_alias("half", "acme.half")
            raise ZeroDivisionError

        def failure(self, error: BaseException) -> BaseException:
            return error

    answers = groups.commit(register(A, 1, "acme.before"), HalfWay(), register(B, 1, "acme.after"))
    assert [type(answer) for answer in answers] == [Done, ZeroDivisionError, Done]
    with Registry(registry_folder) as registry:
        assert "acme.half" not in registry
        assert "half" not in registry
        assert (
            registry.describe("acme.after").provenance.sequence
            == registry.describe("acme.before").provenance.sequence + 1
        )


def test_each_sees_those_before_it(groups: Groups, registry_folder: Path) -> None:
    answers = groups.commit(
        register(A, 1, "acme.m", expected=0, category="one"),
        register(B, 1, "acme.m", expected=0, category="late"),
        register(A, 2, "acme.m", expected=1, category="two", oldest=1),
        request(A, SetAlias(3, 1, "short", "acme.m")),
        register(B, 2, "acme.m", expected=2, category="three", oldest=1),
    )
    assert [kind(answer) for answer in answers] == ["Done", "ConflictError", "Done", "Done", "Done"]
    error = unpack(answers[1])
    assert isinstance(error, ConflictError)
    assert (error.name, error.expected_version, error.current_version) == ("acme.m", 0, 1)
    with Registry(registry_folder) as registry:
        assert registry.get_module("short").category == "three"
        assert registry.describe("acme.m").provenance.version == 3


def test_a_group_without_effect_makes_no_commit(groups: Groups) -> None:
    groups.commit(register(A, 1, "acme.m"))
    size, writes = groups.store.environment.lmdb.info()["last_pgno"], groups.store.environment.lmdb.info()["last_txnid"]
    answers = groups.commit(register(A, 2, "acme.m"), request(B, Unregister(1, 1, "acme.none")))
    assert [kind(answer) for answer in answers] == ["Done", "UnknownModuleError"]
    after = groups.store.environment.lmdb.info()
    assert (after["last_pgno"], after["last_txnid"]) == (size, writes)


# Sent twice


def test_the_same_request_in_one_group_has_the_effect_of_once(groups: Groups, registry_folder: Path) -> None:
    first, second = register(A, 1, "acme.m", expected=0), register(A, 1, "acme.m", expected=0)
    assert groups.commit(first, second) == [Done(1, 2), Done(1, 2)]
    with Registry(registry_folder) as registry:
        assert registry.describe("acme.m").provenance.version == 1


def test_a_request_sent_again_gets_its_first_answer(groups: Groups, registry_folder: Path) -> None:
    registered = groups.commit(register(A, 1, "acme.m", expected=0))
    assert registered == groups.commit(register(A, 1, "acme.m", expected=0))
    unregistered = groups.commit(request(A, Unregister(2, 2, "acme.m")))
    groups.commit(register(B, 1, "acme.m"))  # another's, which the repetition must not undo
    assert unregistered == groups.commit(request(A, Unregister(2, 2, "acme.m")))
    with Registry(registry_folder) as registry:
        assert "acme.m" in registry


def test_also_after_a_restart(registry_folder: Path) -> None:
    first = Groups(registry_folder)
    registered = first.commit(
        register(A, 1, "acme.m", expected=0), register(A, 2, "acme.m", expected=1, category="x", oldest=1)
    )
    first.store.close()
    again = Groups(registry_folder)
    assert registered == again.commit(
        register(A, 1, "acme.m", expected=0), register(A, 2, "acme.m", expected=1, category="x", oldest=1)
    )
    again.store.close()
    with Registry(registry_folder) as registry:
        assert registry.describe("acme.m").provenance.version == 2


def test_a_failure_is_answered_as_before_while_later_requests_are_under_way(
    groups: Groups, registry_folder: Path
) -> None:
    """Carried out again, the first would succeed after the second, against the order in which they were sent."""
    conflict, done = groups.commit(register(A, 1, "acme.m", expected=1), register(A, 2, "acme.m", expected=0, oldest=1))
    assert (kind(conflict), kind(done)) == ("ConflictError", "Done")
    assert groups.commit(register(A, 1, "acme.m", expected=1)) == [conflict]
    groups.store.close()
    again = Groups(registry_folder)
    assert again.commit(register(A, 1, "acme.m", expected=1)) == [conflict]
    again.store.close()


def test_what_was_overtaken_is_not_carried_out(groups: Groups, registry_folder: Path) -> None:
    groups.commit(register(A, 5, "acme.five"))
    (late,) = groups.commit(register(A, 4, "acme.four"))
    assert isinstance(late, Failed)
    assert late.was_overtaken
    six, late = groups.commit(register(A, 7, "acme.seven"), register(A, 6, "acme.six"))
    assert isinstance(six, Done)
    assert late.was_overtaken
    with Registry(registry_folder) as registry:
        assert "acme.four" not in registry
        assert "acme.six" not in registry


def test_answers_are_kept_for_as_long_as_they_are_waited_for(groups: Groups) -> None:
    for number in range(1, 2 * WINDOW):
        groups.commit(register(A, number, "acme.m", category=f"c{number}", oldest=1))
    assert len(groups.replies.of(A)) == WINDOW
    groups.commit(register(A, 2 * WINDOW, "acme.m", oldest=2 * WINDOW))
    assert groups.replies.of(A) == (Done(2 * WINDOW, 2 * WINDOW + 1),)


def test_the_longest_silent_client_is_forgotten(registry_folder: Path) -> None:
    clients = [bytes([n]) * 16 for n in range(6)]
    groups = Groups(registry_folder, limit=4)
    for client in clients[:4]:
        groups.commit(register(client, 1, f"acme.m{client[0]}"))
    groups.commit(register(clients[0], 2, "acme.again"))
    for client in clients[4:]:
        groups.commit(register(client, 1, f"acme.m{client[0]}"))
    groups.commit(register(clients[5], 2, "acme.last"))
    assert groups.stored() == {clients[n] for n in (0, 3, 4, 5)}
    groups.store.close()
    smaller = Groups(registry_folder, limit=2)
    assert len(smaller.replies) == 2
    assert smaller.commit(register(clients[5], 2, "acme.last")) == [Done(2, 9)]
    smaller.commit(register(clients[4], 2, "acme.more"))
    assert smaller.stored() == {clients[4], clients[5]}
    smaller.store.close()


def test_a_damaged_answer_is_dropped(groups: Groups, registry_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    groups.commit(register(A, 1, "acme.a"), register(B, 1, "acme.b"))
    environment = groups.store.environment
    with environment.lmdb.begin(write=True) as txn:
        txn.put(A, b"damaged", db=environment.dbs.requests)
    groups.store.close()
    again = Groups(registry_folder)
    assert (again.replies.of(A), again.replies.of(B)) == ((), (Done(1, 2),))
    assert "a client" in caplog.text
    again.commit(register(B, 2, "acme.c"))
    assert again.stored() == {B}
    again.store.close()


def test_answers_take_no_more_memory_than_they_may(groups: Groups) -> None:
    """Those of whom was silent for longest go first, and one client's last answers never for its own sake."""
    groups.replies = ReplyCache(most_bytes=1_000_000)
    wordy = module("acme.m", metadata={"k" * 3900: {f"{n}": msgspec.msgpack.Ext(5, b"") for n in range(100)}})
    groups.commit(register(A, 1, "acme.kept"))
    for number in range(64):
        for client in (A, *(bytes([n]) * 16 for n in range(2, 6))):
            (failed,) = groups.commit(request(client, registration(number + 2, wordy, oldest=1)))
            assert len(msgspec.msgpack.encode(failed)) > 12_000
            assert groups.replies.held_bytes <= 1_000_000 or len(groups.replies) == 1
    assert groups.replies.of(bytes([5]) * 16)
    assert groups.replies.held_bytes == sum_of_parts(groups.replies)


def sum_of_parts(replies: ReplyCache) -> int:
    again = ReplyCache()
    for client in replies._clients:
        again.keep(client, replies.of(client))
    return again.held_bytes


def test_of_a_large_discovery_the_first_names_are_kept() -> None:
    names = tuple(f"found.M{n}" for n in range(100_000))
    small = Applied(1, 7, names[:3], (), ("no",))
    assert following((), 1, (small,)) == (small,)
    (kept,) = following((small,), 2, (Applied(2, 8, names, names[:5], ()),))
    assert isinstance(kept, Applied)
    assert (kept.id, kept.revision, kept.withdrawn) == (2, 8, names[:5])
    assert kept.declared == (*names[:100], "and 99900 more")


# Through the daemon


def test_requests_that_arrive_during_a_commit_share_the_next(registry_folder: Path) -> None:
    with daemon(registry_folder, **SLOW) as served, served.peer() as peer, served.client() as client:
        answers = peer.ask(*(registration(n, module(f"acme.m{n}"), oldest=1) for n in range(1, 65)))
        assert all(isinstance(answer, Done) for answer in answers)
        revisions = [answer.revision for answer in answers]
        assert revisions == sorted(revisions)
        assert len(set(revisions)) == client.status().groups < 64


@pytest.mark.parametrize("limit", [{"group": 1}, {"group_bytes": 1}])
def test_a_group_is_bounded(registry_folder: Path, limit: dict[str, int]) -> None:
    with (
        daemon_of("tests.support.daemon_process", "serve_within", registry_folder, limit) as served,
        served.peer() as peer,
    ):
        answers = peer.ask(*(registration(n, module(f"acme.m{n}"), oldest=1) for n in range(1, 33)))
        assert [answer.revision for answer in answers] == list(range(2, 34))


def test_per_client_requests_take_effect_in_order(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.peer() as peer, Registry(registry_folder) as registry:
        # Each is right only after the one before it.
        messages = [registration(n, module("acme.m", category=f"c{n}"), n - 1, oldest=1) for n in range(1, WINDOW)]
        answers = peer.ask(*messages, Unregister(WINDOW, 1, "acme.m"))
        assert all(isinstance(answer, Done) for answer in answers)
        assert "acme.m" not in registry
        (again,) = peer.ask(registration(WINDOW + 1, module("acme.m")))
        assert isinstance(again, Done)
        assert registry.describe("acme.m").provenance.version == WINDOW


def test_a_batch_is_one_commit_or_none(registry_folder: Path) -> None:
    modules = [encode(module(f"acme.m{n}")) for n in range(300)]
    parts = [Part(modules[at : at + 100]) for at in (0, 100, 200)]
    with daemon(registry_folder) as served, served.peer() as peer, Registry(registry_folder) as registry:
        peer.send(*parts, Part([encode(module(""))]), RegisterMany(1, 1, 301))
        while not isinstance(answer := peer.receive(), Failed):
            pass
        assert answer.kind == "InvalidModuleError"
        assert registry.revision == 1
        peer.send(*parts, RegisterMany(2, 2, 300))
        while not isinstance(answer := peer.receive(), Done):
            pass
        assert answer.revision == registry.revision == 2
        assert len(registry) == 306


def test_versions_count_on_though_none_of_a_group_is_left(groups: Groups, registry_folder: Path) -> None:
    """Else one who registered version 2 could later replace another's version 2, and take it for its own."""
    groups.commit(
        register(A, 1, "acme.m", expected=0, category="one"),
        register(A, 2, "acme.m", expected=1, category="two", oldest=1),
        request(A, Unregister(3, 1, "acme.m")),
    )
    groups.commit(register(B, 1, "acme.m", expected=0, category="three"), request(B, Unregister(2, 1, "acme.m")))
    (done,) = groups.commit(register(B, 3, "acme.m", category="four"))
    assert isinstance(done, Done)
    groups.commit(register(B, 4, "dspy.Predict", category="x"), request(B, Unregister(5, 4, "dspy.Predict")))
    groups.commit(register(B, 6, "dspy.Predict", category="y"))
    with Registry(registry_folder) as registry:
        assert registry.describe("acme.m").provenance.version == 4
        assert registry.describe("dspy.Predict").provenance.version == 3
        assert list(registry)[-2:] == ["acme.m", "dspy.Predict"]


def test_a_group_stages_for_as_long_as_the_disk_is_worth() -> None:
    assert staging_seconds(0.0, 0.01) == staging_seconds(0.0001, 0.01) < 0.003
    assert staging_seconds(0.003, 0.01) == 0.006
    assert staging_seconds(1.0, 0.01) == 0.01
    assert staging_seconds(0.0, 0.001) == 0.001


class Quick(Work):
    def stage(self, draft: Draft) -> None:
        pass

    def success(self, revision: int) -> int:
        return revision


def test_a_costly_work_waits_for_the_next_group_so_that_the_others_do_not_wait_for_it(groups: Groups) -> None:
    works = [Quick() for _ in range(4)]

    def staged(expected: dict[Work, float]) -> list[Work]:
        group = Group(works, groups.replies, 100.0, expected=lambda work: expected.get(work, 0.0))
        revision = groups.store.committer.commit(group.stage)
        done = [work for work, _ in group.conclude(revision)]
        assert [*done, *group.left] == works
        return done

    assert staged({}) == works
    assert staged({works[2]: 200.0}) == works[:2]
    assert staged({works[0]: 200.0}) == works, "the first one is always staged"
    assert staged(dict.fromkeys(works, 200.0)) == works[:1]
