"""HTTP to one etcd node at a time: the JSON gateway that every node has beside gRPC."""

from __future__ import annotations

import asyncio
import io
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import msgspec

from dspy_registry.registry_store.errors import (
    ClusterAccessError,
    ClusterUnavailableError,
    NotPossibleError,
    RegistryError,
)
from dspy_registry.writer.cluster.etcd_json import Answer, decode, encode, problem_of
from dspy_registry.writer.cluster.options import ClusterOptions

try:
    import aiohttp
    from yarl import URL
except ImportError as missing:
    raise NotPossibleError(
        "a cluster needs the package aiohttp.", remedy="Install dspy-module-registry[cluster]."
    ) from missing

ANSWER_SECONDS: Final = 2.0
"""A node that does not answer for longer counts as stopped, and the next one is asked."""
SILENT_SECONDS: Final = 3.0
"""A watch that is silent for longer is dropped. Each host writes every second, so only a stopped node is silent."""
_WHOLE_SECONDS: Final = 6.0  # for a request and its answer: a stopped node does not take a large request
_ASKING: Final = aiohttp.ClientTimeout(total=_WHOLE_SECONDS, connect=ANSWER_SECONDS, sock_read=ANSWER_SECONDS)
_WATCHING: Final = aiohttp.ClientTimeout(connect=ANSWER_SECONDS, sock_read=SILENT_SECONDS)
_MOST_CONNECTIONS: Final = 16
_LARGE: Final = 2**20  # bytes; aiohttp warns of a larger body that is not a file
_JSON: Final = {"Content-Type": "application/json"}
T = TypeVar("T")

NodeError: Final = (aiohttp.ClientError, asyncio.TimeoutError)
"""The node cannot be reached, is silent, or has ended the connection."""
NotSentError: Final = aiohttp.ClientConnectorError
"""No connection could be made, so no node has seen the request."""


class Gateway:
    """The nodes of a cluster. It asks one of them until that one fails. Belongs to one event loop."""

    def __init__(self, options: ClusterOptions) -> None:
        self._endpoints = tuple(endpoint.rstrip("/") for endpoint in options.endpoints)
        self._at = random.randrange(
            len(self._endpoints)
        )  # the next to be asked; at random, so that hosts use all nodes
        self._user, self._password = options.user, options.password
        self._token = ""
        self._trust = _trust(options)
        self._session: aiohttp.ClientSession | None = None  # made in the loop
        self._urls: dict[str, URL] = {}

    def __repr__(self) -> str:
        return f"Gateway({', '.join(self._endpoints)})"

    @property
    def endpoint(self) -> str:
        """The node that is asked next."""
        return self._endpoints[self._at % len(self._endpoints)]

    def turn(self) -> str:
        """Ask the next node from now on. Returns the address of the one that was asked until now."""
        before = self.endpoint
        self._at += 1
        return before

    async def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Ask one node after the other until one answers. Only for a request that may be carried out twice.

        Raises ClusterUnavailableError when no node answers, and the error that an answer stands for.
        """
        failed: dict[str, Exception] = {}
        for _ in self._endpoints:
            try:
                return await self.ask_one(path, body)
            except (*NodeError, ClusterUnavailableError) as error:
                failed[self.turn()] = error
        told = "; ".join(f"{node} ({said(failed[node])})" for node in sorted(failed))  # a log has the same text once
        raise ClusterUnavailableError(
            f"no node of the cluster answers: {told}.", remedy="Look at the cluster's nodes."
        ) from next(reversed(failed.values()))

    async def ask_one(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Ask one node, once. Only if the log-in has ended, log in and ask again.

        Raises one of `NodeError`, and the error that the answer stands for.
        """
        await self._be_logged_in()
        try:
            return await self._post(path, body)
        except ClusterAccessError:
            if self._user is None:
                raise
        self._token = ""  # a token ends after some minutes
        await self._be_logged_in()
        return await self._post(path, body)

    async def stream(self, path: str, body: Mapping[str, Any], read: Callable[[Answer], T]) -> AsyncGenerator[T, None]:
        """Yield `read(answer)` for each line that the node sends, until the node ends it. Raises as `ask_one` does."""
        await self._be_logged_in()
        try:
            async with self._sent(path, body, _WATCHING) as response:
                async for line in _lines(response.content):
                    yield read(self._answer(line))
        except ClusterAccessError:
            self._token = ""
            raise

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _be_logged_in(self) -> None:
        if self._user is not None and not self._token:
            answer = await self._post("/v3/auth/authenticate", {"name": self._user, "password": self._password})
            self._token = answer.token

    async def _post(self, path: str, body: Mapping[str, Any]) -> Answer:
        async with self._sent(path, body, _ASKING) as response:
            return self._answer(await response.read(), is_well=response.status == 200)

    @asynccontextmanager
    async def _sent(
        self, path: str, body: Mapping[str, Any], patience: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = _session(self._trust)
        content, address = encode(body), f"{self.endpoint}{path}"
        url = self._urls.get(address) or self._urls.setdefault(address, URL(address))
        async with self._session.post(
            url,
            data=content if len(content) < _LARGE else io.BytesIO(content),
            headers={**_JSON, "Authorization": self._token} if self._token else _JSON,
            timeout=patience,
            allow_redirects=False,
        ) as response:
            yield response

    def _answer(self, content: bytes, *, is_well: bool = True) -> Answer:
        try:
            answer = decode(content)
            if is_well and answer.error is None:
                return answer
            raise problem_of(msgspec.json.decode(content))
        except msgspec.DecodeError as error:
            raise ClusterUnavailableError(f"{self.endpoint} does not answer as etcd's gateway does.") from error


def said(error: BaseException) -> str:
    """The text of an error without its remedy and a full stop; its type if it has no text."""
    text = error.message if isinstance(error, RegistryError) else str(error)
    return text.rstrip(".") or type(error).__name__


def _session(trust: ssl.SSLContext | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_MOST_CONNECTIONS, ssl=True if trust is None else trust),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        auto_decompress=False,
    )


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    begun: list[bytes] = []  # the parts of a line that has not ended
    async for chunk in content.iter_any():
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            line = b"".join((*begun, part))
            begun.clear()
            if line:
                yield line
        begun.append(rest)


def _trust(options: ClusterOptions) -> ssl.SSLContext | None:
    """Whom to trust. None: nothing is encrypted, and reading the system's certificates would take 50 ms for nothing."""
    if not (options.ca or options.cert or any(url.startswith("https:") for url in options.endpoints)):
        return None
    context = ssl.create_default_context(cafile=options.ca)
    if options.cert is not None and options.key is not None:
        try:
            context.load_cert_chain(options.cert, options.key)
        except (ssl.SSLError, OSError) as error:
            raise RegistryError(f"the client's certificate cannot be used: {error}.") from error
    return context
