"""HEAD: as GET, without the body. Monitors and load balancers ask so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("jinja2")

import httpx

from tests.support.explorer import BEARER, Explorer, empty_site

pytestmark = pytest.mark.xdist_group("explorer")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    with empty_site(tmp_path_factory.mktemp("heads") / "registry") as running:
        yield running


def asked(site: Explorer, method: str, path: str, **headers: str) -> httpx.Response:
    return httpx.request(method, site.url + path, timeout=60, headers=headers, trust_env=False)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/modules/dspy.ReAct", "/ask?names=dspy.ReAct", "/changes", "/store", "/login", "/static/explorer.css"),
        *("/api/v1/state", "/api/v1/modules", "/api/v1/modules/dspy.ReAct", "/api/v1/route?names=dspy.ReAct"),
        *("/api/v1/changes", "/api/v1/store", "/api/v1/health", "/api/v1/openapi.json"),
        *("/modules/nobody", "/api/v1/modules/nobody", "/api/v1/route", "/api/v1/changes?count=x", "/nothing"),
    ],
)
def test_head_has_the_status_and_headers_of_get_and_no_body(site: Explorer, path: str) -> None:
    full, head = asked(site, "GET", path, **BEARER), asked(site, "HEAD", path, **BEARER)
    assert head.status_code == full.status_code
    assert set(head.headers) == set(full.headers)
    assert head.headers["content-type"] == full.headers["content-type"]
    assert (head.content, bool(full.content)) == (b"", True)


def test_what_is_refused_to_get_is_refused_to_head(site: Explorer) -> None:
    for path, status in (("/api/v1/state", 401), ("/", 303)):
        assert asked(site, "HEAD", path).status_code == asked(site, "GET", path).status_code == status
    assert asked(site, "HEAD", "/", host="evil.example").status_code == 421


def test_the_stream_of_events_does_not_begin(site: Explorer) -> None:
    head = asked(site, "HEAD", "/api/v1/events", **BEARER)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")


def test_where_there_is_no_get_there_is_no_head(site: Explorer) -> None:
    answer = asked(site, "HEAD", "/api/v1/usage", **BEARER)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert asked(site, "DELETE", "/api/v1/state", **BEARER).headers["allow"] == "GET, HEAD"
