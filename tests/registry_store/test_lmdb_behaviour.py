"""What this project relies on in LMDB and its binding, tried on the real thing.

A failure here says that an upgrade changed something that docs/design.md builds on, not that our code is wrong.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tests.support.processes import child, requests, run, say


def put(env: Any, value: bytes, key: bytes = b"key") -> None:
    with env.begin(write=True) as txn:
        txn.put(key, value)


def get(env: Any, key: bytes = b"key") -> bytes | None:
    with env.begin() as txn:
        value: bytes | None = txn.get(key)
        return value


def hold(path: str, max_readers: int = 126) -> None:
    env = lmdb.open(path, readonly=True, max_readers=max_readers)
    txn = env.begin()
    say(txn.get(b"key").decode())
    for _ in requests():
        say(txn.get(b"key").decode())


# Opening


def test_the_bundled_library_writes_the_format_that_is_documented() -> None:
    assert lmdb.version()[:2] == (0, 9)


def test_an_environment_opens_once_in_a_process_even_when_its_data_file_is_another(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path)) as env:
        put(env, b"value")
        with pytest.raises(lmdb.Error):
            lmdb.open(str(tmp_path), readonly=True)
        (tmp_path / "copy").write_bytes((tmp_path / "data.mdb").read_bytes())
        (tmp_path / "copy").replace(tmp_path / "data.mdb")
        with pytest.raises(lmdb.Error):  # lock.mdb is still the same
            lmdb.open(str(tmp_path), readonly=True)


def test_a_huge_map_costs_no_disk_and_a_reader_takes_it_over(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 40) as env:
        put(env, b"value")
    assert (tmp_path / "data.mdb").stat().st_size < 1 << 20
    with lmdb.open(str(tmp_path), map_size=0, readonly=True) as env:
        assert env.info()["map_size"] == 1 << 40


def open_with_little_room(path: str, map_size: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    try:
        with lmdb.open(path, map_size=map_size, readonly=True) as env:
            say((get(env) or b"").decode())
    except lmdb.Error as error:
        say([type(error).__name__, error.code])


def test_where_the_stored_map_does_not_fit_a_smaller_one_does(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 40) as env:
        put(env, b"value")
    assert run(__name__, "open_with_little_room", tmp_path, 0) == [["MemoryError", 12]]
    assert run(__name__, "open_with_little_room", tmp_path, 1 << 28) == ["value"]


def test_a_data_file_of_no_bytes_is_a_new_environment(tmp_path: Path) -> None:
    """As a kill between creating the file and writing its first pages leaves it."""
    (tmp_path / "data.mdb").touch()
    with pytest.raises(lmdb.Error):
        lmdb.open(str(tmp_path), readonly=True, create=False)
    with lmdb.open(str(tmp_path)) as env:
        put(env, b"value")
        assert get(env) == b"value"


# Transactions


def test_a_commit_that_failed_can_be_aborted_without_harm(tmp_path: Path) -> None:
    run(__name__, "fail_a_commit", tmp_path)


def fail_a_commit(path: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    env = lmdb.open(path)
    put(env, b"before")
    size = (Path(path) / "data.mdb").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    txn = env.begin(write=True)
    txn.put(b"key", b"x" * 100_000)
    with pytest.raises(lmdb.Error):
        txn.commit()
    txn.abort()
    assert get(env) == b"before"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    env.close()
    with lmdb.open(path) as again:
        put(again, b"after")
        assert get(again) == b"after"


def test_a_committed_transaction_can_be_aborted_without_harm(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path)) as env:
        txn = env.begin(write=True)
        txn.put(b"key", b"value")
        txn.commit()
        txn.abort()
        assert get(env) == b"value"


def test_two_read_transactions_of_one_commit_have_one_id(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path)) as env:
        put(env, b"one")
        with env.begin() as first, env.begin(buffers=True) as second:
            assert first.id() == second.id()
            put(env, b"two")
            with env.begin() as third:
                assert third.id() == first.id() + 1
            assert (first.get(b"key"), bytes(second.get(b"key"))) == (b"one", b"one")


def test_keys_beyond_511_bytes_are_refused_or_not_found(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path)) as env:
        put(env, b"value", b"k" * 511)
        with env.begin(write=True) as txn:
            for key in (b"", b"k" * 512):
                with pytest.raises(lmdb.BadValsizeError):
                    txn.put(key, b"value")
            assert txn.cursor().getmulti([b"k" * 600]) == []
            with pytest.raises(lmdb.BadValsizeError):
                txn.get(b"")


def test_an_environment_closed_under_a_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    run(__name__, "close_under_reads", tmp_path)


def close_under_reads(path: str) -> None:
    """Closing waits for the call that is under way, and the next one is refused."""
    with lmdb.open(path, map_size=1 << 28) as env, env.begin(write=True) as txn:
        for number in range(2000):
            txn.put(b"%04d" % number, b"x" * 3000)
    for _ in range(40):
        env = lmdb.open(path, readonly=True, max_spare_txns=4)
        started = threading.Barrier(3)

        def read(env: Any = env, started: threading.Barrier = started) -> None:
            started.wait()
            with pytest.raises(lmdb.Error):
                read_on(env)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        started.wait()
        env.close()
        for thread in threads:
            thread.join()


def read_on(env: Any) -> None:
    number = 0
    while True:
        number = (number * 7 + 13) % 2000
        txn = env.begin()
        try:
            txn.get(b"%04d" % number)
        finally:
            txn.abort()


# The reader table


def readers_of(env: Any) -> set[int]:
    return {int(line.split()[0]) for line in env.readers().splitlines()[1:] if line.strip()}


def test_a_dead_readers_slot_stays_until_somebody_looks_and_its_pages_with_it(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 28) as env:
        put(env, b"value")
        with child(__name__, "hold", tmp_path) as reader:
            assert reader.hear() == "value"
            reader.kill()
        assert reader.pid in readers_of(env)
        for _ in range(50):
            put(env, b"x" * 10_000)
        grown = (tmp_path / "data.mdb").stat().st_size
        assert env.reader_check() == 1
        assert reader.pid not in readers_of(env)
        for _ in range(200):
            put(env, b"x" * 10_000)
        assert (tmp_path / "data.mdb").stat().st_size == grown


def test_looking_for_dead_readers_leaves_the_living_alone(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 28) as env:
        put(env, b"value")
        with child(__name__, "hold", tmp_path) as reader:
            assert reader.hear() == "value"
            for _ in range(20):
                put(env, b"x" * 10_000)
                assert env.reader_check() == 0
            assert reader.ask() == "value"


def test_the_size_of_the_reader_table_is_its_first_openers(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), max_readers=5) as env:
        put(env, b"value")
        with child(__name__, "hold", tmp_path, 100) as reader:
            assert reader.hear() == "value"
            transactions: list[Any] = []
            with pytest.raises(lmdb.ReadersFullError):
                transactions.extend(env.begin() for _ in range(100))
            put(env, b"writers need no slot")


def test_a_spare_transaction_keeps_its_slot(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), max_spare_txns=1) as env:
        put(env, b"value")
        assert os.getpid() not in readers_of(env)
        assert get(env) == b"value"
        assert os.getpid() in readers_of(env)


# Pages


@pytest.mark.parametrize("flips", [1, 3])
def test_lmdb_does_not_notice_a_flipped_bit_in_a_value(tmp_path: Path, flips: int) -> None:
    """Which is why every value of ours carries a checksum."""
    with lmdb.open(str(tmp_path)) as env:
        put(env, b"a value of some length")
    data = bytearray((tmp_path / "data.mdb").read_bytes())
    at = data.rindex(b"a value of some length")
    for flip in range(flips):
        data[at + flip * 5] ^= 4
    (tmp_path / "data.mdb").write_bytes(data)
    with lmdb.open(str(tmp_path), readonly=True) as env:
        assert get(env) not in (None, b"a value of some length")


def read_a_file_cut_short(path: str) -> None:
    with lmdb.open(path, readonly=True) as env:
        get(env)


def test_a_file_cut_short_kills_whoever_reads_it(tmp_path: Path) -> None:
    """Which is why a doubtful file is looked at by a process of its own."""
    with lmdb.open(str(tmp_path), map_size=1 << 28) as env:
        put(env, b"x" * 1_000_000)
    os.truncate(tmp_path / "data.mdb", 2 * 4096)
    with child(__name__, "read_a_file_cut_short", tmp_path) as reader:
        assert reader.wait() in (-signal.SIGBUS, -signal.SIGSEGV)
