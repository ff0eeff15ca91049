"""Lets the daemon answer Prometheus: `serve --metrics 127.0.0.1:9464`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, start_http_server

from dspy_registry.registry_store.errors import InvalidArgumentError, NotPossibleError
from dspy_registry.registry_store.number_text import whole_number
from dspy_registry.writer.daemon.host import Host
from dspy_registry.writer.metrics.collector import MODULES_SHOWN, Figures
from dspy_registry.writer.metrics.commits import CommitFigures

_LARGEST_PORT: Final = 65_535


class Address(NamedTuple):
    """Where Prometheus asks. Port 0: any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address in HOST:PORT or [HOST]:PORT. Raises InvalidArgumentError."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    number = whole_number(port) if port.isdecimal() else None  # no sign
    if not bare or (":" in bare) != host.startswith("[") or number is None:
        raise InvalidArgumentError(f"{text!r} is no address; write HOST:PORT, as in 127.0.0.1:9464 or [::1]:9464.")
    if number > _LARGEST_PORT:
        raise InvalidArgumentError(f"{text!r} is no address; a port is at most {_LARGEST_PORT}.")
    return Address(bare, number)


def attach_metrics(host: Host, address: Address, *, modules: int = MODULES_SHOWN) -> Address:
    """Answer Prometheus at this address, in a thread of its own, as long as the daemon runs. The address in use.

    Call it from an extension of the daemon. At most `modules` modules have series of their own: those called most.
    Raises InvalidArgumentError when the address cannot be listened at.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    host.observe_commits(CommitFigures(registry).observe)
    registry.register(Figures(host, asyncio.get_running_loop(), modules))
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(address.port, address.host, registry)
    except OSError as error:
        raise NotPossibleError(
            f"nothing can be served at {address}: {error.strerror or error}.",
            remedy="Give another address with --metrics, or end the process that listens there.",
        ) from error
    bound = Address(address.host, server.server_port)

    async def until_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.to_thread(server.shutdown)
            server.server_close()
            thread.join(1)

    host.add_task(until_the_end)
    host.add_section("metrics", lambda: {"address": str(bound)})
    return bound
