"""One environment for each folder in a process, shared by its readers and writer, and closed across a fork.

LMDB refuses to open a folder twice in a process, so the users of an environment are counted. Before a fork every
environment without a snapshot is closed, for parent and child alike. Its next use opens it again.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from dspy_registry.registry_store import fork_wait, in_flight, opening
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import StoreError
from dspy_registry.registry_store.revision import data_identity

_shared: dict[tuple[int, int], Environment] = {}
shared_lock = threading.RLock()  # taken before a gate, never inside one
_deferred: deque[Callable[[], None]] = deque()


def defer(close: Callable[[], None]) -> None:
    """Call `close` later, when no lock is held. For finalizers, which may run inside a gate."""
    _deferred.append(close)


def run_deferred() -> None:
    """Close what finalizers deferred. Call it where no gate is held."""
    while _deferred:
        try:
            close = _deferred.popleft()
        except IndexError:  # another thread took it
            return
        close()


def attach(folder: Path, *, writable: bool = False) -> Environment:
    """The process's environment for this folder, opened if it is not.

    Raises RegistryNotFoundError, StorePermissionError, StoreError.
    """
    run_deferred()
    with shared_lock:
        key = data_identity(folder)  # a registry that replaced another has another data file
        environment = _shared.get(key)
        if environment is not None and not environment.writable and environment.was_replaced():
            _let_go(environment)
            environment = None
        if environment is None:
            _let_go_of_replaced(folder)
            environment = _shared[key] = Environment(folder, writable=writable)
        elif writable:
            environment.reopen_writable()
        environment.users += 1
        return environment


def lock_file_fits(folder: Path) -> bool:
    """Whether lock.mdb belongs to data.mdb. It does not if data.mdb was replaced while readers were at work."""
    run_deferred()
    with shared_lock:
        if data_identity(folder) in _shared:
            return True
        _let_go_of_replaced(folder)
        return opening.lock_file_fits(folder)


def refuse_foreign(folder: Path) -> None:
    """Raises DamagedStoreError where data.mdb is another program's. Nothing in the folder is touched."""
    run_deferred()
    with shared_lock:
        if data_identity(folder) not in _shared:
            _let_go_of_replaced(folder)
            opening.refuse_foreign(folder)


def share(environment: Environment) -> Environment:
    """The same environment, for one more user who will `detach` it."""
    run_deferred()
    with shared_lock:
        environment.users += 1
    return environment


def detach(environment: Environment) -> None:
    """Give an environment back. The last user closes it."""
    with shared_lock:
        environment.users -= 1
        if environment.users:
            return
        for key in [key for key, shared in _shared.items() if shared is environment]:
            del _shared[key]
        with environment.write_gate, environment.gate:
            environment.retire()


def _let_go(environment: Environment) -> None:
    """Retire an environment whose lock.mdb was replaced: it would never see another commit. Raises StoreError."""
    with environment.gate:
        if environment.open_snapshots:
            raise StoreError(
                f"{environment.folder} was replaced while this process had its files open.",
                remedy="Close its snapshots, then open it again.",
            )
        environment.retire()


def _let_go_of_replaced(folder: Path) -> None:
    """Retire environments of a data file that was replaced, because LMDB opens one lock.mdb only once."""
    for key, environment in list(_shared.items()):
        if environment.folder == folder and not environment.writable:
            with environment.gate:
                if not environment.open_snapshots:
                    del _shared[key]
                    environment.retire()


# Fork

_gated: list[Environment] = []


def _before_fork() -> None:
    """Wait until no transaction is alive. Never block on a gate: its holder may be waiting for `shared_lock`.

    Snapshots of other threads are waited for with the gates released. Those of the forking thread cannot end.
    """
    patient_until = time.monotonic() + fork_wait.PATIENCE
    while True:
        run_deferred()  # a dropped snapshot must not cost the child its environment
        shared_lock.acquire()
        if all(_gate(environment) for environment in list(_shared.values())):
            is_waiting = any(_is_held_by_others(environment) for environment in _gated)
            if not is_waiting or time.monotonic() > patient_until:
                break
            fork_wait.set_waiting(True)
        _release_gates()
        time.sleep(0.001)
    for environment in _gated:
        environment.refuse_short_reads()
    reading = in_flight.environments_in_flight() if _gated else []
    for environment in _gated:
        if not environment.open_snapshots and not any(environment is one for one in reading):
            environment.close()


def _is_held_by_others(environment: Environment) -> bool:
    holders = environment.holders()
    return bool(holders) and threading.get_ident() not in holders


def _gate(environment: Environment) -> bool:
    if not environment.write_gate.acquire(timeout=0.05):
        return False
    if not environment.gate.acquire(timeout=0.05):
        environment.write_gate.release()
        return False
    _gated.append(environment)
    return True


def _release_gates() -> None:
    for environment in _gated:
        environment.allow_short_reads()
        environment.gate.release()
        environment.write_gate.release()
    _gated.clear()
    shared_lock.release()


def _after_fork_in_parent() -> None:
    fork_wait.set_waiting(False)
    _release_gates()


def _after_fork_in_child() -> None:
    fork_wait.set_waiting(False)
    for environment in _gated:
        if environment.is_open:
            environment.orphan()
    _release_gates()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
