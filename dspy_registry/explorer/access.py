"""Who may ask the explorer: the Host header, the token, and the headers of every answer. Deciding is pure.

A page of another site could have its name resolve to 127.0.0.1, and read the explorer through a browser that
visits it. Such a request carries that site's name in its Host header, so only names that are known are answered. An
address is no such name: nobody can make a browser believe that another site is an address.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import quote

from dspy_registry.explorer.refusals import is_for_programs, refuse
from dspy_registry.registry_store.errors import InvalidArgumentError

COOKIE: Final = "dspy_registry_session"
LEAST_TOKEN: Final = 16
"""Characters. A shorter token could be guessed."""
MAKE_ONE: Final = 'Make one: python -c "import secrets; print(secrets.token_urlsafe())".'
LOGIN: Final = "/login"
_OPEN: Final = (LOGIN, "/static/")
_LOCAL_NAMES: Final = ("localhost", "localhost.localdomain")

POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"interest-cohort=()"),
)


def is_loopback(host: str) -> bool:
    """Whether only processes of this host can reach this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOCAL_NAMES


def checked_token(host: str, token: str | None) -> str | None:
    """The token; None: none is asked for. Raises InvalidArgumentError if the address needs one, or it is weak."""
    if token is None:
        if is_loopback(host):
            return None
        raise InvalidArgumentError(
            f"{host} can be reached from other hosts, so the explorer wants a token.",
            remedy="Put one into a file and name it with --token-file, or into $DSPY_REGISTRY_UI_TOKEN.",
        )
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidArgumentError(
            f"the explorer's token {_weakness(token)}: it must have at least {LEAST_TOKEN} printable ASCII characters "
            "and no blank.",
            remedy=MAKE_ONE,
        )
    return token


def _weakness(token: str) -> str:
    if not token.strip():
        return "is empty"
    return "is too short" if len(token) < LEAST_TOKEN else "has other characters"


def is_known_host(header: str, names: Collection[str]) -> bool:
    """Whether a Host header names an address, this host, or one of the names (in lower case) that were allowed."""
    name = _without_port(header.lower())
    if name in _LOCAL_NAMES or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _without_port(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def session(token: str) -> str:
    """What the cookie holds: derived from the token, which it does not tell."""
    return hmac.new(token.encode(), b"dspy-registry explorer", hashlib.sha256).hexdigest()


def has_bearer(authorization: str, token: str | None) -> bool:
    """Whether an Authorization header carries the token. Without a token: no."""
    scheme, _, given = authorization.partition(" ")
    return token is not None and scheme.lower() == "bearer" and _equal(given.strip(), token)


def has_session(cookies: str, token: str) -> bool:
    """Whether a Cookie header carries the session."""
    try:
        found = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return False
    return found is not None and _equal(found.value, session(token))


def is_token(given: str, token: str) -> bool:
    """Whether somebody has typed the token."""
    return _equal(given, token)


def _equal(given: str, expected: str) -> bool:
    return bool(expected) and hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


class Guard:
    """The application, behind these checks. An answer of any kind carries the headers. `names` are allowed hosts."""

    def __init__(self, app: Any, token: str | None, names: Collection[str] = ()) -> None:
        self._app = app
        self._token = token
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS, *_caching(message)]
            await send(message)

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if not is_known_host(headers.get(b"host", ""), self._names):
            await refuse(scope, sending, 421, "StorePermissionError", *_STRANGE_HOST)
        elif not self._is_admitted(scope["path"], headers):
            if is_for_programs(scope["path"]):
                await refuse(scope, sending, 401, "StorePermissionError", *_NO_TOKEN, _CHALLENGE)
            else:
                to = quote(scope["path"], safe="/")
                location = (b"location", f"{LOGIN}?next={to}".encode())
                await refuse(scope, sending, 303, "StorePermissionError", "log in first.", headers=(location,))
        else:
            await self._app(scope, receive, sending)

    def _is_admitted(self, path: str, headers: dict[bytes, str]) -> bool:
        if self._token is None or path.startswith(_OPEN):
            return True
        if has_bearer(headers.get(b"authorization", ""), self._token):
            return True
        return has_session(headers.get(b"cookie", ""), self._token)


_STRANGE_HOST: Final = (
    "this explorer does not answer to the name in the Host header.",
    "Ask it by an address or as localhost, or start it with --allow-host NAME.",
)
_NO_TOKEN: Final = ("a token is needed.", "Send the header Authorization: Bearer TOKEN.")
_CHALLENGE: Final = ((b"www-authenticate", b"Bearer"),)


def _caching(message: Any) -> tuple[tuple[bytes, bytes], ...]:
    """Nothing is kept by a browser or on the way, unless the answer says so itself."""
    has_own = any(name.lower() == b"cache-control" for name, _ in message.get("headers", ()))
    return () if has_own else ((b"cache-control", b"no-store"),)
