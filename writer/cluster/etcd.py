"""etcd as the cluster's engine, over the JSON gateway that every etcd node has beside gRPC."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.errors import (
    ClusterAccessError,
    ClusterUnavailableError,
    NotPossibleError,
    RegistryError,
)
from dspy_registry.writer.cluster.engine import (
    CompactedError,
    Events,
    KeyValue,
    LeaseGoneError,
    Outcome,
    Page,
    UnknownOutcomeError,
)
from dspy_registry.writer.cluster.etcd_json import (
    event,
    found_in,
    key_value,
    number,
    problem_of,
    range_end,
    text,
    transaction,
)
from dspy_registry.writer.cluster.options import ClusterOptions, check_options

try:
    import httpx
except ImportError as missing:
    raise NotPossibleError(
        "a cluster needs the package httpx.", remedy="Install dspy-module-registry[cluster]."
    ) from missing

ANSWER_SECONDS: Final = 2.0
"""A node that takes longer to answer is taken for stopped, and the next one is asked."""
SILENT_SECONDS: Final = 3.0
"""A watch that is silent for so long is dropped: a stopped node says nothing. Each host writes every second."""
_PATIENCE: Final = {"timeout": httpx.Timeout(ANSWER_SECONDS).as_dict()}
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Etcd:
    """An `Engine`. Belongs to one event loop. Raises InvalidArgumentError for options that cannot be used."""

    def __init__(self, options: ClusterOptions) -> None:
        check_options(options)
        self._endpoints = tuple(endpoint.rstrip("/") for endpoint in options.endpoints)
        self._at = random.randrange(len(self._endpoints))  # the one that is asked next: hosts spread over the nodes
        self._prefix = options.prefix.encode()  # a user need not be allowed to read more
        self._user, self._password = options.user, options.password
        self._token = ""
        limits = httpx.Limits(max_connections=16)
        self._transport = httpx.AsyncHTTPTransport(verify=_trust(options), limits=limits, trust_env=False)
        self._http = httpx.AsyncClient(transport=self._transport, trust_env=False)
        self._urls: dict[str, httpx.URL] = {}

    def __repr__(self) -> str:
        return f"Etcd({', '.join(self._endpoints)})"

    @property
    def endpoint(self) -> str:
        """The node that is asked next."""
        return self._endpoints[self._at % len(self._endpoints)]

    async def cluster_id(self) -> str:
        """See `Engine.cluster_id`."""
        answer = await self._ask("/v3/kv/range", {"key": text(self._prefix), "count_only": True})
        return f"{number(answer['header'], 'cluster_id'):x}"

    async def transact(
        self,
        expected: Mapping[bytes, int],
        puts: Mapping[bytes, bytes],
        reads: Sequence[bytes] = (),
        *,
        leased: Mapping[bytes, int] | None = None,
        below: Mapping[bytes, int] | None = None,
        removed: Sequence[bytes] = (),
    ) -> Outcome:
        """See `Engine.transact`. It is asked of one node: the caller repeats it, and knows what a repetition means."""
        body = transaction(expected, puts, reads, leased or {}, below or {}, removed)
        try:
            answer = await self._ask_one("/v3/kv/txn", body)
        except httpx.ConnectError as error:
            self._at += 1
            raise ClusterUnavailableError(f"no connection to {self._named(-1)}: {_said(error)}.") from error
        except httpx.HTTPError as error:
            self._at += 1
            raise UnknownOutcomeError(f"{self._named(-1)} did not say what became of a change.") from error
        except ClusterUnavailableError as error:  # timed out, or the leader changed: it may still be carried out
            self._at += 1
            raise UnknownOutcomeError(error.message) from error
        return Outcome(bool(answer.get("succeeded")), number(answer["header"], "revision"), found_in(answer))

    async def range_at(self, prefix: bytes, after: bytes = b"", revision: int = 0, limit: int = 500) -> Page:
        """See `Engine.range_at`."""
        body = {
            "key": text(after + b"\0" if after else prefix),
            "range_end": text(range_end(prefix)),
            "limit": str(limit),
            "revision": str(revision),
        }
        answer = await self._ask("/v3/kv/range", body)
        items = [key_value(plain) for plain in answer.get("kvs", ())]
        return Page(items, revision or number(answer["header"], "revision"), bool(answer.get("more")))

    async def watch_from(self, prefix: bytes, revision: int) -> AsyncIterator[Events]:
        """See `Engine.watch_from`."""
        wanted = {"key": text(prefix), "range_end": text(range_end(prefix)), "start_revision": str(revision)}
        patience = httpx.Timeout(ANSWER_SECONDS, read=SILENT_SECONDS)
        try:
            if self._user is not None and not self._token:
                await self._log_in()
            async with self._http.stream(
                "POST",
                f"{self.endpoint}/v3/watch",
                json={"create_request": wanted},
                headers=self._headers(),
                timeout=patience,
            ) as stream:
                async for line in stream.aiter_lines():
                    if line:
                        yield _step(_decode(line))
        except httpx.HTTPError as error:
            self._at += 1
            raise ClusterUnavailableError(f"the watch of {self._named(-1)} has ended: {_said(error)}.") from error
        except ClusterAccessError:
            self._token = ""
            raise
        self._at += 1
        raise ClusterUnavailableError(f"{self._named(-1)} has ended the watch.")

    async def lease(self, seconds: int) -> int:
        """See `Engine.lease`."""
        return number(await self._ask("/v3/lease/grant", {"TTL": str(seconds)}), "ID")

    async def keep_lease(self, lease: int) -> None:
        """See `Engine.keep_lease`."""
        answer = await self._ask("/v3/lease/keepalive", {"ID": str(lease)})
        if number(answer.get("result", {}), "TTL") <= 0:
            raise LeaseGoneError(f"lease {lease:x} has ended")

    async def lease_left(self, lease: int) -> float:
        """See `Engine.lease_left`."""
        answer = await self._ask("/v3/lease/timetolive", {"ID": str(lease)})
        left = number(answer, "TTL")
        if left < 0:
            raise LeaseGoneError(f"lease {lease:x} has ended")
        return left

    async def end_lease(self, lease: int) -> None:
        """See `Engine.end_lease`."""
        await self._ask("/v3/lease/revoke", {"ID": str(lease)})

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._http.aclose()

    async def _ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask one node after the other, for what may be asked twice."""
        last: Exception | None = None
        for _ in self._endpoints:
            try:
                return await self._ask_one(path, body)
            except (httpx.HTTPError, ClusterUnavailableError) as error:
                self._at += 1
                last = error
        raise ClusterUnavailableError(f"no node of the cluster answers: {_said(last)}.") from last

    async def _ask_one(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self._user is not None and not self._token:
            await self._log_in()
        try:
            return await self._post(path, body)
        except ClusterAccessError:
            if self._user is None:
                raise
        await self._log_in()  # a token ends after some minutes
        return await self._post(path, body)

    async def _log_in(self) -> None:
        self._token = ""
        answer = await self._post("/v3/auth/authenticate", {"name": self._user, "password": self._password})
        self._token = str(answer.get("token", ""))

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        response = await self._send(f"{self.endpoint}{path}", _encode(body))
        try:
            answer = _decode(await response.aread())
        except msgspec.DecodeError as error:
            raise ClusterUnavailableError(f"{self.endpoint} does not answer as etcd's gateway does.") from error
        if response.status_code != httpx.codes.OK or not isinstance(answer, dict) or "error" in answer:
            raise problem_of(answer if isinstance(answer, dict) else {})
        return answer

    async def _send(self, address: str, content: bytes) -> httpx.Response:
        """Straight to the transport: a client's redirects, cookies and hooks take as long as the rest of a request."""
        url = self._urls.get(address)
        if url is None:
            url = self._urls[address] = httpx.URL(address)
        headers = {"Content-Type": "application/json", **self._headers()}
        request = httpx.Request("POST", url, content=content, headers=headers, extensions=_PATIENCE)
        return await self._transport.handle_async_request(request)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self._token} if self._token else {}

    def _named(self, back: int) -> str:
        return self._endpoints[(self._at + back) % len(self._endpoints)]


def _step(answer: dict[str, Any]) -> Events:
    if "error" in answer:
        raise problem_of(answer)
    result = answer["result"]
    if number(result, "compact_revision"):
        raise CompactedError(f"revisions before {number(result, 'compact_revision')} are compacted")
    if result.get("canceled"):
        reason = str(result.get("cancel_reason", "no reason given"))
        kind = ClusterAccessError if "permission" in reason or "auth" in reason else ClusterUnavailableError
        raise kind(f"the cluster has cancelled the watch: {reason}.")
    changes: list[KeyValue] = [event(plain) for plain in result.get("events", ())]
    return Events(changes, number(result["header"], "revision"))


def _said(error: Exception | None) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _trust(options: ClusterOptions) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.ca)
    if options.cert is not None and options.key is not None:
        try:
            context.load_cert_chain(options.cert, options.key)
        except (ssl.SSLError, OSError) as error:
            raise RegistryError(f"the client's certificate cannot be used: {error}.") from error
    return context
