"""One environment per folder and process, shared by all who read or write there, and let go of across a fork.

LMDB refuses to open a folder twice in a process, so environments are counted. Before a fork every environment without
a snapshot is closed, in parent and child alike; whoever needs it next opens it again.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from dspy_registry.registry_store import environment as environments
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.revision import data_identity

_shared: dict[tuple[int, int], Environment] = {}
shared_lock = threading.RLock()  # taken before a gate, not inside one
_deferred: deque[Callable[[], None]] = deque()


def defer(close: Callable[[], None]) -> None:
    """For finalizers, which run anywhere, inside a gate too: do this when next no lock is held."""
    _deferred.append(close)


def run_deferred() -> None:
    """Close what finalizers left. Only where no gate is held."""
    while _deferred:
        try:
            close = _deferred.popleft()
        except IndexError:  # another thread was quicker
            return
        close()


def attach(folder: Path, *, writable: bool = False) -> Environment:
    """The process's environment for this folder, opened if need be.

    Raises RegistryNotFoundError, StorePermissionError, StoreError.
    """
    run_deferred()
    with shared_lock:
        key = data_identity(folder)  # a registry put in the place of another is not the other
        environment = _shared.get(key)
        if environment is None:
            _let_go_of_replaced(folder)
            environment = _shared[key] = Environment(folder, writable=writable)
        elif writable:
            environment.reopen_writable()
        environment.users += 1
        return environment


def lock_file_fits(folder: Path) -> bool:
    """Whether lock.mdb belongs to data.mdb; not when the latter was put in the place of another under live readers."""
    run_deferred()
    with shared_lock:
        if data_identity(folder) in _shared:
            return True
        _let_go_of_replaced(folder)
        return environments.lock_file_fits(folder)


def share(environment: Environment) -> Environment:
    """The same environment for one more user, who will `detach` it."""
    run_deferred()
    with shared_lock:
        environment.users += 1
    return environment


def detach(environment: Environment) -> None:
    """Give an environment back; the last one closes it."""
    with shared_lock:
        environment.users -= 1
        if environment.users:
            return
        for key in [key for key, shared in _shared.items() if shared is environment]:
            del _shared[key]
        with environment.write_gate, environment.gate:
            environment.retire()


def _let_go_of_replaced(folder: Path) -> None:
    """LMDB opens no second environment on one lock.mdb, though its data file be another. Its readers open anew."""
    for key, environment in list(_shared.items()):
        if environment.folder == folder and not environment.writable:
            with environment.gate:
                if not environment.open_snapshots:
                    del _shared[key]
                    environment.retire()


# Fork

_gated: list[Environment] = []


def _before_fork() -> None:
    """Wait until no transaction is alive, in any order of locks: whoever holds a gate may be waiting for sharing."""
    run_deferred()  # a snapshot that nobody holds any more must not cost the child its environment
    while True:
        shared_lock.acquire()
        if all(_gate(environment) for environment in list(_shared.values())):
            break
        _release_gates()
        time.sleep(0.001)
    for environment in _gated:
        if environment.settle() and not environment.open_snapshots:
            environment.close()


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
        environment.resume()
        environment.gate.release()
        environment.write_gate.release()
    _gated.clear()
    shared_lock.release()


def _after_fork_in_child() -> None:
    for environment in _gated:
        if environment.lmdb is not None:
            environment.orphan()
    _release_gates()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_release_gates,
    after_in_child=_after_fork_in_child,
)
