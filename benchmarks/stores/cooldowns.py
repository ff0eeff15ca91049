"""LiteLLM's router as a peer: processes share its cooldowns over Redis. It is asked by its public and router functions.

Each round fails a call of another model group, because a cooldown lasts. The failing call is mocked, as LiteLLM offers.
What is measured begins when that call has returned, so only the sharing counts.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Final

from benchmarks.rows import Bench

PROCESSES: Final = 2
"""Each takes seconds of processor time to import it, so there are few. That is in its favour."""
_POLL: Final = 0.005  # seconds between two looks of a watcher
_INSTALL: Final = "apt-get install redis-server; pip install litellm redis"


class MissingError(Exception):
    """It is not installed."""


def spread(bench: Bench, rounds: int, watchers: Callable[..., Any], watched: Callable[..., None]) -> list[float]:
    """Nanoseconds until the last process knows, for each round. Raises MissingError."""
    if importlib.util.find_spec("litellm") is None or shutil.which("redis-server") is None:
        raise MissingError(f"LiteLLM or Redis is not installed ({_INSTALL})")
    tick = bench.ticker("LiteLLM's router", rounds)
    found = []
    with _redis() as port, watchers(_watch, port, rounds, watched, count=PROCESSES) as watching:
        router = _router(port, rounds)
        _call(router, "warm", fails=False)
        for turn in range(rounds):
            watching.begin()
            time.sleep(0.2)
            _call(router, f"group-{turn}", fails=True)
            began = time.monotonic_ns()
            found.append(max(0.0, float(max(watching.knew()) - began)))
            tick()
    return found


def _watch(port: int, rounds: int, watched: Callable[..., None], pipe: Connection) -> None:
    router = _router(port, rounds)
    seen = len(_cooling(router))

    def knows() -> None:
        nonlocal seen
        while (now := len(_cooling(router))) == seen:
            time.sleep(_POLL)
        seen = now

    watched(pipe, knows)


def _router(port: int, rounds: int) -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    groups = ["warm", *(f"group-{turn}" for turn in range(rounds))]
    models = [
        {
            "model_name": group,
            "litellm_params": {"model": f"openai/{group}-{copy}", "api_key": "none"},
            "model_info": {"id": f"{group}-{copy}"},
        }
        for group in groups
        for copy in range(2)  # a group of one is never cooled down
    ]
    return litellm.Router(model_list=models, redis_host="127.0.0.1", redis_port=port, num_retries=0, cooldown_time=600)


def _call(router: Any, group: str, *, fails: bool) -> None:
    litellm: Any = importlib.import_module("litellm")
    mocked = litellm.RateLimitError("too many", "openai", group) if fails else "well"
    try:
        router.completion(model=group, messages=[{"role": "user", "content": "hello"}], mock_response=mocked)
    except litellm.RateLimitError:
        if not fails:
            raise


def _cooling(router: Any) -> list[str]:
    handlers: Any = importlib.import_module("litellm.router_utils.cooldown_handlers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found: list[str] = handlers._get_cooldown_deployments(litellm_router_instance=router, parent_otel_span=None)
    return found


@contextmanager
def _redis() -> Iterator[int]:
    """The port of a private Redis server, with persistence off."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            _wait_for(port)
            yield port
        finally:
            server.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
