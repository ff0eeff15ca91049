"""The clients that misbehave do what they say, and the benchmark ends whatever the daemon does."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from benchmarks import fairness, misbehaviour
from benchmarks.misbehaviour import Peer
from dspy_registry.registry_store.protocol import (
    BatchProgress,
    Done,
    Failed,
    Welcome,
    frame,
)
from tests.support.daemon_process import daemon
from tests.support.selection import each


class Scripted:
    """A socket that answers what it is given, then closes."""

    def __init__(self, folder: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "writer.sock"))
        self._listener.listen()

    def accept(self, *answers: bytes) -> socket.socket:
        peer, _ = self._listener.accept()
        peer.sendall(b"".join(answers))
        return peer

    def close(self) -> None:
        self._listener.close()


def test_signs_of_life_are_no_answers(tmp_path: Path) -> None:
    served = Scripted(tmp_path)
    with Peer(tmp_path) as peer:
        answers = (Welcome(1, 1), BatchProgress(1, 0, 1), BatchProgress(1, 0, 1), Done(1, 7), Done(2, 8))
        with served.accept(*map(frame, answers)) as other:
            peer.greet()
            assert peer.answer() == Done(1, 7)
            assert peer.answer() == Done(2, 8)
            other.shutdown(socket.SHUT_WR)
            with pytest.raises(OSError, match="closed"):
                peer.answer()
    served.close()


def test_who_gets_no_answer_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(misbehaviour, "ANSWER_SECONDS", 0.05)
    served = Scripted(tmp_path)
    with Peer(tmp_path) as peer, served.accept(), pytest.raises(OSError, match="timed out"):
        peer.greet()
    served.close()


@pytest.mark.parametrize("what", each(3, fairness.CASES), ids=lambda what: what.__name__)
def test_each_case_is_carried_out_by_a_daemon_again_and_again(
    what: misbehaviour.Misbehaviour, registry_folder: Path
) -> None:
    with daemon(registry_folder):
        steps = what(registry_folder, 100)
        for _ in range(3):
            next(steps)
        steps.close()


def test_what_is_to_be_refused_is_refused_and_what_is_to_be_taken_is_taken(
    registry_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    answer = Peer.answer

    def noted(peer: Peer) -> object:
        seen.append(answer(peer))
        return seen[-1]

    monkeypatch.setattr(Peer, "answer", noted)
    with daemon(registry_folder):
        for what in (misbehaviour.refused_records, misbehaviour.costly_records, misbehaviour.usage_batches):
            steps = what(registry_folder, 1)
            next(steps)  # it has begun
            next(steps)
            steps.close()
    refused, costly, usage = seen
    assert isinstance(refused, Failed)
    assert isinstance(costly, Done)
    assert isinstance(usage, Done)


def test_it_ends_when_the_daemon_is_killed_meanwhile(registry_folder: Path) -> None:
    with daemon(registry_folder) as served:
        with fairness.misbehaving(registry_folder, misbehaviour.costly_records, 2):
            os.kill(served.pid, signal.SIGKILL)
        with pytest.raises(OSError, match=r"\[Errno"):
            next(misbehaviour.bad_frames(registry_folder, 1))


def test_each_case_is_compared_with_as_many_quiet_registrations_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(path: Path, count: int) -> list[float]:
        asked.append(count)
        return [float(len(asked))] * count

    monkeypatch.setattr(fairness, "registrations", counted)
    monkeypatch.setattr(fairness, "CASES", fairness.CASES[3:4] * 2)
    lines: list[str] = []
    fairness.measure(lines.append, 10, 1)
    assert asked == [5, 10, 5, 10, 5]
    assert [line.split()[1] for line in lines] == ["2.00", "4.00"]


def test_at_least_one_registration_is_made_and_no_more_than_asked(registry_folder: Path) -> None:
    with daemon(registry_folder):
        assert len(fairness.registrations(registry_folder, 3)) == 3
        assert len(fairness.registrations(registry_folder, 3, 0.0)) == 1
    assert fairness.percentiles([float(number) for number in range(1000)]) == (500.0, 990.0)
