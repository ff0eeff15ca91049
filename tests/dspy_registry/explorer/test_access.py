"""Who the explorer answers: hosts, tokens, sessions."""

from __future__ import annotations

from http.cookies import SimpleCookie

import pytest

pytest.importorskip("fastapi")

from dspy_registry.explorer import access
from dspy_registry.explorer.pages import _local
from dspy_registry.registry_store.errors import InvalidArgumentError

TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_address_needs_no_token(host: str) -> None:
    assert access.checked_token(host, None) is None
    for empty in ("", " ", "\n"):
        with pytest.raises(InvalidArgumentError, match="empty"):
            access.checked_token(host, empty)
    assert access.checked_token(host, TOKEN) == TOKEN


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "registry.example"])
def test_any_other_address_needs_one(host: str) -> None:
    with pytest.raises(InvalidArgumentError):
        access.checked_token(host, None)
    assert access.checked_token(host, TOKEN) == TOKEN


@pytest.mark.parametrize(
    "token", ["short", "with a blank in its middle", "ünlike-ascii-token-here", "line\nbreak-in-a-token"]
)
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError):
        access.checked_token("127.0.0.1", token)


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("127.0.0.1:8712", True),
        ("localhost", True),
        ("LOCALHOST:8712", True),
        ("[::1]:8712", True),
        ("10.0.0.7:80", True),
        ("registry.example:8712", True),
        ("evil.example:8712", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
        ("[::1", True),
        ("[evil]", False),
    ],
)
def test_only_known_host_names_are_answered(header: str, known: bool) -> None:
    assert access.is_known_host(header, {"registry.example"}) is known


def test_a_session_is_made_of_the_token_and_does_not_tell_it() -> None:
    cookies = SimpleCookie({access.COOKIE: access.session(TOKEN)}).output(header="")
    assert access.has_session(cookies, TOKEN)
    assert TOKEN not in cookies
    assert not access.has_session(cookies, TOKEN + "x")
    assert not access.has_session("", TOKEN)
    assert not access.has_session(f"{access.COOKIE}={TOKEN}", TOKEN)


def test_a_bearer_is_the_token_itself() -> None:
    assert access.has_bearer(f"Bearer {TOKEN}", TOKEN)
    assert access.has_bearer(f"bearer  {TOKEN} ", TOKEN)
    for wrong in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ü"):
        assert not access.has_bearer(wrong, TOKEN)
    assert not access.has_bearer("Bearer ", None)


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:1", "", "/\r\nx: y"]
)
def test_nobody_is_led_elsewhere_after_the_login(target: str) -> None:
    assert _local(target) == "/"
    assert _local("/modules/acme.Qa") == "/modules/acme.Qa"
