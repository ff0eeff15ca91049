"""What the explorer refuses: a token that is none, and under /api always with JSON that says cause and remedy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("jinja2")

import httpx

from dspy_registry import Registry, RegistryWriter
from dspy_registry.explorer.app import create_app
from dspy_registry.explorer.body_limit import BodyLimit
from dspy_registry.explorer.site import Site
from tests.support.command import daemon, run
from tests.support.explorer import BEARER, TOKEN, Explorer, explorer

pytestmark = pytest.mark.xdist_group("explorer")

STRANGE = ("\u0661\u0662", "1_0", " 7", "nan", "inf", "1e999", "9" * 5000)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("refusals") / "registry"
    with RegistryWriter(path):
        pass
    return path


@pytest.fixture(scope="module")
def site(registry: Path) -> Iterator[Explorer]:
    with explorer(registry, DSPY_REGISTRY_UI_TOKEN=TOKEN) as running:
        yield running


def told(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer, which must be JSON as every other is."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    error = answer.json()["error"]
    assert set(error) == {"type", "message", "remedy"}
    assert error["type"]
    assert error["message"]
    return dict(error)


@pytest.mark.parametrize("held", ["", "\n", " \t\n", "short", "\u00fcn" * 20, "x" * 5000])
def test_a_token_file_without_a_good_token_is_refused_at_the_start(registry: Path, tmp_path: Path, held: str) -> None:
    file = tmp_path / "token"
    file.write_text(held)
    done = run("ui", "--port", "0", "--path", registry, "--token-file", file)
    assert done.returncode == 2
    assert "token" in done.stderr
    assert "secrets.token_urlsafe()" in done.stderr
    if not held.strip():
        assert f"the token file {file} is empty" in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", ["DSPY_REGISTRY_UI_TOKEN", "DSPY_REGISTRY_UI_TOKEN_FILE"])
@pytest.mark.parametrize("held", ["", " "])
def test_a_variable_that_is_set_and_empty_opens_nothing(registry: Path, name: str, held: str) -> None:
    done = run("ui", "--port", "0", "--path", registry, **{name: held})
    assert done.returncode == 2
    assert name in done.stderr


def test_errors_before_the_application_are_json_too(site: Explorer) -> None:
    for path in ("/api/v1/state", "/api/v1/nothing", "/api"):
        no_token = site.get(path)
        assert "Authorization: Bearer" in told(no_token, 401)["remedy"]
        assert no_token.headers["www-authenticate"] == "Bearer"
        assert "--allow-host" in told(site.get(path, headers={"host": "evil.example"}), 421)["remedy"]
    assert told(site.post("/api/v1/usage", content=b"x" * 2**21, headers=BEARER), 413)["remedy"]
    assert site.get("/", headers={"host": "evil.example"}).headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api", 404),
        ("GET", "/api/v2/state", 404),
        ("DELETE", "/api/v1/state", 405),
        ("GET", "/api/v1/route?names=dspy.Predict@7", 404),
        ("GET", "/api/v1/route?names=dspy.Predict@nobody", 404),
        ("GET", "/api/v1/route?names=dspy.Predict&label=nobody", 404),
        ("GET", "/api/v1/route", 400),
    ],
)
def test_and_so_is_every_error_of_the_application(site: Explorer, method: str, path: str, status: int) -> None:
    told(httpx.request(method, site.url + path, timeout=60, headers=BEARER), status)


def test_a_body_of_unknown_length_that_is_too_long_is_told_so(site: Explorer) -> None:
    address = urlsplit(site.url)
    with socket.create_connection((address.hostname, address.port), 60) as peer:
        head = f"POST /api/v1/usage HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n"
        peer.sendall(f"{head}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(17):
            peer.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        peer.sendall(b"0\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while b"remedy" not in answer and (part := peer.recv(65536)):
                answer += part
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"application/json" in answer


def test_the_description_has_the_form_of_errors_and_the_token(site: Explorer) -> None:
    described = site.get("/api/v1/openapi.json", headers=BEARER).json()
    form = described["components"]["schemas"]["Refusal"]["properties"]["error"]["$ref"].rpartition("/")[2]
    assert set(described["components"]["schemas"][form]["properties"]) == {"type", "message", "remedy"}
    for path, methods in described["paths"].items():
        for operation in methods.values():
            for status in ("4XX", "5XX"):
                (media,) = operation["responses"][status]["content"].values()
                assert media["schema"]["$ref"].endswith("/Refusal"), path
            assert operation["security"] == [{"HTTPBearer": []}], path
            assert "422" not in operation["responses"], path


@pytest.mark.parametrize("text", STRANGE)
@pytest.mark.parametrize(
    ("page", "field"),
    [
        ("modules", "page"),
        ("changes", "count"),
        ("route", "input_size"),
        ("route", "deadline_ms"),
        ("route", "max_cost_usd"),
    ],
)
def test_a_number_in_an_address_is_in_plain_digits(site: Explorer, page: str, field: str, text: str) -> None:
    answer = site.get(f"/api/v1/{page}", params={"names": "dspy.Predict", field: text}, headers=BEARER)
    assert "in plain digits" in told(answer, 422)["message"]


@pytest.mark.parametrize("field", ["duration_ms", "tokens_in", "cost_usd", "version", "began_at", "ok"])
@pytest.mark.parametrize("value", ['"1_0"', '"7"', "NaN", "Infinity"])
def test_a_reported_number_is_a_number(site: Explorer, field: str, value: str) -> None:
    body = f'{{"calls": [{{"name": "dspy.Predict", "duration_ms": 5, "{field}": {value}}}]}}'
    answer = site.post("/api/v1/usage", content=body, headers={**BEARER, "content-type": "application/json"})
    assert field in told(answer, 422)["message"]


NO_NAMES = ("n" * 256, "\u00e9" * 128, "a\0b", "a\nb", "\x7f", "", "\ud800", 5, None, True, {"a": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", name) for name in NO_NAMES),
        *(("name", ["dspy.Predict", name]) for name in NO_NAMES),
        *(("name", []), ("name", ["dspy.Predict"] * 9), ("name", [["dspy.Predict"]])),
        *((count, value) for count in ("input_chars", "tokens_in", "tokens_out") for value in (-1, 2**53, 10**400)),
        *(("version", -1), ("version", 2**32), ("cost_usd", -0.1), ("cost_usd", 2e9)),
        *(("duration_ms", -1), ("duration_ms", 1e12), ("limit_ms", 0), ("limit_ms", 1e12)),
        *(("began_at", 0), ("began_at", 1.8e12), ("retry_after", -1), ("retry_after", 86_401)),
        *(("error", "luck"), ("error", ""), ("ok", None), ("ok", 1)),
    ],
)
def test_a_call_that_would_be_lost_or_changed_later_is_refused(site: Explorer, field: str, value: Any) -> None:
    call = {"name": "dspy.Predict", "duration_ms": 5, field: value}
    headers = {**BEARER, "content-type": "application/json"}
    answer = site.post("/api/v1/usage", content=json.dumps({"calls": [call]}), headers=headers)
    message = told(answer, 422)["message"]
    assert message.startswith(f"calls.0.{field}"), message
    assert field == "error" or message.count(f"calls.0.{field}") == 1, "each problem once"


def test_all_that_is_wrong_with_a_request_is_named_at_once(site: Explorer) -> None:
    wrong = {"name": ["a\0b", "n" * 256], "duration_ms": -1, "tokens_in": 2**53, "version": 2**32}
    message = told(site.post("/api/v1/usage", json={"calls": [wrong, wrong]}, headers=BEARER), 422)["message"]
    for call in (0, 1):
        for field in wrong:
            assert f"calls.{call}.{field}: " in message
    assert message.count("control character") == message.count("256 bytes, allowed are 1 to 255") == 2
    many = {"calls": [wrong] * 20}
    assert told(site.post("/api/v1/usage", json=many, headers=BEARER), 422)["message"].endswith("; and 30 more")


def test_more_names_than_a_reporter_keeps_are_refused(site: Explorer) -> None:
    calls = [{"name": f"acme.M{number}", "duration_ms": 5} for number in range(513)]
    message = told(site.post("/api/v1/usage", json={"calls": calls}, headers=BEARER), 422)["message"]
    assert message == "calls: 513 different modules and versions, allowed are 512 in one request"


def test_what_is_taken_is_counted_to_the_last_digit(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder):
        pass
    largest = {
        "name": ["\u00e9" * 127, "n" * 255, *["x"] * 5, "dspy.Predict"],
        "duration_ms": 30 * 24 * 3600 * 1000,
        "input_chars": 2**53 - 1,
        "tokens_in": 2**53 - 1,
        "tokens_out": 2**53 - 1,
        "cost_usd": 1e9,
        "version": 2**32 - 1,
        "limit_ms": 30 * 24 * 3600 * 1000,
        "began_at": time.time() + 3600,
        "retry_after": 86_400,
    }
    others = [{"name": f"acme.M{number}", "duration_ms": 0} for number in range(511)]
    with daemon(registry_folder):
        with explorer(registry_folder, DSPY_REGISTRY_UI_TOKEN=TOKEN) as site:
            taken = site.post("/api/v1/usage", json={"calls": [largest, *others]}, headers=BEARER)
            assert (taken.status_code, taken.json()) == (202, {"recorded": 512})
        with Registry(registry_folder) as registry, registry.snapshot() as snapshot:
            usage = registry.usage("dspy.Predict")
            assert (usage.calls, usage.tokens_in, usage.tokens_out, usage.cost_usd) == (1, 2**53 - 1, 2**53 - 1, 1e9)
            assert usage.durations["very_large"].calls == 1
            assert snapshot.calls_lost() == 0
            assert sum(each.calls for each in registry.usages()) == 512


@pytest.mark.parametrize("text", ["x", "-1", "9" * 20, "9" * 5000, "\u00b2"])
def test_an_event_id_that_is_no_revision_counts_as_none(site: Explorer, text: str) -> None:
    headers = {**BEARER, "last-event-id": text.encode("latin-1")}
    with httpx.stream("GET", f"{site.url}/api/v1/events", headers=headers, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert next(lines).startswith("retry")
        assert next(lines) == "event: hello"


class Broken(Site):
    """A site with a fault."""

    def store(self) -> dict[str, Any]:
        raise ZeroDivisionError


@pytest.mark.parametrize(("path", "media"), [("/api/v1/store", "application/json"), ("/store", "text/html")])
def test_a_fault_is_told_as_every_other_error(registry: Path, path: str, media: str) -> None:
    site = Broken(registry)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(site), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    try:
        answer = asyncio.run(ask())
    finally:
        site.registry.close()
        site.reporter.close()
    assert answer.status_code == 500
    assert answer.headers["content-type"].startswith(media)
    assert "failed to answer" in answer.text
    assert "ZeroDivision" not in answer.text


def test_an_answer_that_has_begun_goes_on_though_its_body_is_too_long() -> None:
    began = {"type": "http.response.start", "status": 200, "headers": []}
    ended = {"type": "http.response.body", "body": b"all"}
    sent: list[Any] = []

    async def application(_scope: Any, receive: Any, send: Any) -> None:
        await send(began)
        assert (await receive())["type"] == "http.disconnect"
        await send(ended)

    async def receive() -> Any:
        return {"type": "http.request", "body": bytes(11)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(BodyLimit(application, 10)({"type": "http", "path": "/", "headers": []}, receive, send))
    assert sent == [began, ended]
