"""The explorer as a process: each page and its JSON, the daemon up and down, what is refused, reported calls."""

from __future__ import annotations

import contextlib
import html
import json
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("jinja2")
pytest.importorskip("prometheus_client")

import httpx

from dspy_registry import ModuleInfo, Policy, Registry, RegistryWriter, Requirements, UsageReporter, WriterClient
from dspy_registry.explorer.access import POLICY
from tests.support.command import daemon, run
from tests.support.explorer import TOKEN, Explorer, explorer
from tests.support.metrics import measured_daemon
from tests.support.reporting import calls
from tests.support.usage_helpers import wait_until

pytestmark = pytest.mark.xdist_group("explorer")

LARGEST_PAGE = 200_000
STRANGE = "acme.<script>alert(1)</script>"
ODD = "acme.a/b?c#d%20e"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with versions, usage, and what could harm a page."""
    path = tmp_path_factory.mktemp("explorer") / "registry"
    with RegistryWriter(path):
        pass
    with daemon(path), WriterClient(path) as client, UsageReporter(path) as reporter:
        client.register_module(ModuleInfo("acme.Qa", capabilities=("answering",), estimated_duration=1200))
        for call in range(50):
            reporter.record("acme.Qa", 900.0, call % 5 > 0, 500, error=None if call % 5 else "error", cost_usd=0.01)
        assert reporter.flush(60)
        needs = Requirements(memory="high")
        client.register_module(ModuleInfo("acme.Qa", capabilities=("answering", "reasoning"), requirements=needs))
        client.set_label("acme.Qa", "live", {1: 90, 2: 10})
        client.register_module(ModuleInfo(ODD))
        client.register_module(ModuleInfo(STRANGE, metadata={"<b>": "<i>" * 20_000}, examples=("x" * 100_000,)))
    return path


@pytest.fixture(scope="module")
def site(registry: Path) -> Iterator[Explorer]:
    with explorer(registry) as running:
        yield running


@pytest.fixture(scope="module")
def closed_site(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """One that wants a token of everybody, while no daemon runs."""
    file = tmp_path_factory.mktemp("secret") / "token"
    file.write_text(f"{TOKEN}\n")
    with explorer(registry, "--token-file", str(file)) as running:
        yield running


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/?page=9",
        "/?capabilities=reasoning&gpu=no",
        "/modules/acme.Qa",
        "/modules/predict",
        "/changes",
        "/store",
        "/ask",
        "/ask?capabilities=reasoning&input_size=1800&deadline_ms=&max_cost_usd=",
        "/ask?names=nobody",
    ],
)
def test_every_page_is_whole_and_small_and_guarded(site: Explorer, path: str) -> None:
    answer = site.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text.startswith("<!doctype html>")
    assert answer.text.rstrip().endswith("</html>")
    assert len(answer.content) < LARGEST_PAGE
    assert " style=" not in answer.text
    assert "<script>" not in answer.text


def test_modules_come_by_use_with_what_calls_have_shown(site: Explorer) -> None:
    found = site.json("/api/v1/modules")
    assert (found["total"], found["modules"][0]["name"]) == (9, "acme.Qa")
    row = found["modules"][0]
    assert (row["calls"], row["errors"], row["error_rate"], row["version"]) == (50, 10, 0.2, 2)
    assert sum(row["calls_by_minute"]) == 50
    assert row["p50_ms"] == pytest.approx(900, rel=0.01)
    page = site.get("/").text
    assert 'class="number alarming">20.0\xa0%' in page
    assert page.index("acme.Qa") < page.index("dspy.Predict")


def test_filters_are_those_of_find(site: Explorer) -> None:
    def names(query: str) -> list[str]:
        return [row["name"] for row in site.json(f"/api/v1/modules?{query}")["modules"]]

    assert names("capabilities=reasoning&max_memory=medium") == ["dspy.ChainOfThought", "dspy.ReAct"]
    assert names("q=COL") == ["dspy.ColBERTv2"]
    assert names("pool_type=neural&gpu=yes") == ["dspy.ColBERTv2"]
    assert names("capabilities=nothing") == []
    assert "No module meets" in site.get("/?capabilities=nothing").text


def test_a_module_says_who_declared_it_and_how_its_versions_differ(site: Explorer) -> None:
    found = site.json("/api/v1/modules/Qa")
    assert (found["name"], found["version"], found["sources"]["category"]) == ("acme.Qa", 2, "client")
    newest, first = found["versions"]
    assert {change["field"] for change in newest["changes"]} == {
        "capabilities", "requirements.memory", "estimated_duration",
    }  # fmt: skip
    assert newest["by"].startswith("user ")
    assert first["changes"] == []
    assert found["rollback"][0]["command"].startswith("dspy-registry rollback acme.Qa --to 1 --path ")
    assert found["usage_by_version"][0]["standing"]["normal"]["completed"] == 40
    page = site.get("/modules/acme.Qa").text
    assert found["rollback"][0]["command"] in page
    assert "<svg" in page


def test_a_name_of_any_kind_leads_to_its_json(site: Explorer) -> None:
    page = site.get(f"/modules/{quote(ODD, safe='')}").text
    (address,) = re.findall(r'The same as JSON: <a href="([^"]*)"', page)
    assert site.json(html.unescape(address))["name"] == ODD


def test_the_command_beside_the_modules_asks_this_registry(site: Explorer, registry: Path) -> None:
    page = html.unescape(site.get("/?category=a;b").text)
    assert f"The same on the command line: <code>dspy-registry find --category 'a;b' --path {registry}<" in page
    page = site.get("/?q=qa").text
    assert f"On the command line, with any name: <code>dspy-registry list --path {registry}<" in page


def test_a_half_open_circuit_is_told_with_the_time_since_when(registry_folder: Path) -> None:
    with daemon(registry_folder), WriterClient(registry_folder) as client, explorer(registry_folder) as site:
        client.open_circuit("dspy.Predict", 0.05)
        wait_until(lambda: site.json("/api/v1/health")["health"][0]["state"] == "half_open", "half-open")
        assert "version 1, since <time" in site.get("/").text
        assert "Version 1 is half-open since <time" in site.get("/modules/dspy.Predict").text


def test_labels_stand_beside_the_versions_that_they_name(site: Explorer) -> None:
    found = site.json("/api/v1/modules/acme.Qa")
    assert found["labels"]["live"]["percents"] == {"1": 90.0, "2": 10.0}
    page = site.get("/modules/acme.Qa").text
    assert "version 1: 90\xa0%, version 2: 10\xa0%" in page
    assert page.count('<span class="tag">@live</span>') == 2
    changed = [change["labels"] for change in site.json("/api/v1/changes")["changes"] if change["labels"]]
    assert changed == [[{"name": "acme.Qa", "label": "live", "old": {}, "new": {"1": 90.0, "2": 10.0}}]]
    assert "@live</code>: nothing → version 1: 90\xa0%" in site.get("/changes").text


def test_what_a_record_holds_cannot_become_markup(site: Explorer) -> None:
    page = site.get(f"/modules/{STRANGE}")
    assert page.status_code == 200
    assert "&lt;script&gt;" in page.text
    assert "<script>alert" not in page.text + site.get("/").text + site.get("/changes").text
    assert len(page.content) < LARGEST_PAGE


def test_asking_gives_candidates_exclusions_and_the_same_in_python(site: Explorer) -> None:
    found = site.json("/api/v1/route?capabilities=reasoning&exclude=dspy.ReAct")
    assert found["chosen"]["name"] == found["candidates"][0]["name"]
    assert [each["reason"] for each in found["excluded"]] == ["exclude"]
    assert found["python"] == "registry.route(capabilities=('reasoning',), exclude=('dspy.ReAct',))"
    done = run(*shlex.split(found["command"])[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(found["chosen"]["name"])
    none = site.json("/api/v1/route?capabilities=reasoning&deadline_ms=1")
    assert none["chosen"] is None
    assert {each["reason"] for each in none["excluded"]} == {"deadline"}
    assert site.get("/api/v1/route").json()["error"]["type"] == "InvalidArgumentError"


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/api/v1/modules/nobody", 404, "UnknownModuleError"),
        ("/api/v1/modules?page=0", 422, "InvalidArgumentError"),
        ("/api/v1/route?names=nobody", 404, "UnknownModuleError"),
        ("/api/v1/nothing", 404, "HTTPError"),
    ],
)
def test_an_error_is_json_beside_json_and_a_page_beside_pages(
    site: Explorer, path: str, status: int, kind: str
) -> None:
    answer = site.get(path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    page = site.get(path.removeprefix("/api/v1").replace("modules?", "?"))
    assert page.headers["content-type"].startswith("text/html")


def test_the_description_of_the_api_is_there(site: Explorer) -> None:
    described = site.json("/api/v1/openapi.json")
    assert {"/api/v1/modules", "/api/v1/usage", "/api/v1/events", "/api/v1/route"} <= set(described["paths"])
    assert {"post"} == {method for methods in described["paths"].values() for method in methods if method != "get"}


def test_a_host_name_of_another_site_is_refused(site: Explorer) -> None:
    assert site.get("/", headers={"host": "evil.example"}).status_code == 421
    assert site.get("/api/v1/state", headers={"host": "evil.example"}).status_code == 421


def test_without_a_token_nothing_can_be_reported(site: Explorer, registry: Path) -> None:
    call = {"calls": [{"name": "acme.Qa", "duration_ms": 5}]}
    assert site.post("/api/v1/usage", json=call).status_code == 403
    assert site.post("/api/v1/usage", json=call, headers={"authorization": "Bearer None"}).status_code == 403
    assert calls(registry, "acme.Qa") == 50


def test_other_methods_change_nothing(site: Explorer) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = httpx.request(method, f"{site.url}/modules/acme.Qa", timeout=60)
        assert (answer.status_code, answer.headers.get("allow")) == (405, "GET, HEAD")
    assert site.json("/api/v1/state")["revision"] == 6


def events(site: Explorer, **headers: str) -> Iterator[tuple[str, Any]]:
    with httpx.stream("GET", f"{site.url}/api/v1/events", headers=headers, timeout=60) as answer:
        kind = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                yield kind, json.loads(line[6:])


def test_changes_come_as_events_and_missed_ones_again(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder):
        pass
    with daemon(registry_folder), explorer(registry_folder) as site, WriterClient(registry_folder) as client:
        with contextlib.closing(events(site)) as heard:
            assert next(heard) == ("hello", {"revision": 1})
            client.register_module(ModuleInfo("acme.New"))
            kind, change = next(heard)
            assert (kind, change["revision"], change["modules"][0]["name"]) == ("change", 2, "acme.New")
        client.register_module(ModuleInfo("acme.Newer"))
        with contextlib.closing(events(site, **{"Last-Event-ID": "1"})) as heard:
            told = [next(heard) for _ in range(3)]
            assert [change["revision"] for _, change in told] == [3, 2, 3]


def test_what_is_not_healthy_and_what_is_limited_is_shown_and_told(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder):
        pass
    with (
        measured_daemon(registry_folder) as measured,
        explorer(registry_folder) as site,
        WriterClient(registry_folder) as client,
        Registry(registry_folder) as reader,
        contextlib.closing(events(site)) as heard,
    ):
        assert next(heard)[0] == "hello"
        client.set_policy("dspy.Predict", Policy(max_concurrency=3))
        assert next(heard)[1]["policies"] == ["dspy.Predict"]
        assert "<code>dspy.Predict</code>" in site.get("/changes").text
        client.open_circuit("dspy.Predict", 60.0)
        kind, entries = next(heard)
        assert (kind, entries[0]["name"], entries[0]["state"]) == ("health", "dspy.Predict", "open")
        state = site.json("/api/v1/state")
        assert (state["circuit_count"], state["circuits"][0]["name"]) == (1, "dspy.Predict")
        (row,) = site.json("/api/v1/modules?q=predict")["modules"]
        assert row["health"][0]["state"] == "open"
        page = site.get("/?q=predict").text
        assert "version 1 open" in page
        assert "version 1, until <time" in page
        assert "opened once" in site.get("/modules/dspy.Predict").text
        with reader.limit("dspy.Predict", patience=0):
            found = site.json("/api/v1/modules/dspy.Predict")
            assert found["concurrency"] == [{"limit": "module:dspy.Predict", "most": 3, "calls": 1}]
            assert "1 of 3 calls under way" in site.get("/modules/dspy.Predict").text
            values = measured.values()

        def value(metric: str, **labels: str) -> float:
            return values[f"dspy_registry_{metric}", frozenset(labels.items())]

        assert value("limit_calls", limit="module:dspy.Predict") == 1
        assert value("limit_calls_max", limit="module:dspy.Predict") == 3
        assert value("circuits", state="open") == 1
        assert value("circuit_not_closed", module="dspy.Predict", version="1", state="open") == 1
        assert value("circuit_transitions_total", to="open") == 1
        excluded = site.json("/api/v1/route?names=dspy.Predict+dspy.ReAct")["excluded"]
        assert [(each["name"], each["reason"]) for each in excluded] == [("dspy.Predict", "health")]
        client.reset_circuit("dspy.Predict")
        assert next(heard) == ("health", [])


def test_it_goes_on_while_the_daemon_is_down_and_says_so(site: Explorer) -> None:
    state = site.json("/api/v1/state")
    assert state["daemon"]["up"] is False
    assert state["revision"] == 6
    page = site.get("/").text
    assert "<strong>down</strong>" in page
    assert "<dt>Manifest errors</dt><dd>–</dd>" in page
    assert site.json("/api/v1/store")["registry"]["data_bytes"] > 0


def test_with_a_token_all_of_it_is_closed_until_one_logs_in(closed_site: Explorer) -> None:
    site = closed_site
    assert site.get("/api/v1/state").status_code == 401
    assert site.get("/api/v1/state", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert site.get("/modules/acme.Qa").headers["location"] == "/login?next=/modules/acme.Qa"
    assert site.get("/login").status_code == 200
    assert site.get("/static/explorer.css").status_code == 200
    with httpx.Client(base_url=site.url, timeout=60) as visitor:
        assert visitor.post("/login", data={"token": "wrong", "next": "/"}).status_code == 403
        assert visitor.get("/").status_code == 303
        done = visitor.post("/login", data={"token": TOKEN, "next": "/changes"})
        assert (done.status_code, done.headers["location"]) == (303, "/changes")
        assert {"HttpOnly", "SameSite=strict"} <= set(done.headers["set-cookie"].split("; "))
        assert visitor.get("/").status_code == 200
        # A cookie goes along with requests that other sites make, so it does not let anybody report.
        body = {"calls": [{"name": "acme.Qa", "duration_ms": 5}]}
        assert visitor.post("/api/v1/usage", json=body).status_code == 403


def test_calls_that_are_reported_over_http_arrive_as_all_others(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder):
        pass
    bearer = {"authorization": f"Bearer {TOKEN}"}
    with daemon(registry_folder):
        with explorer(registry_folder, DSPY_REGISTRY_UI_TOKEN=TOKEN) as site:
            good = {"name": "dspy.Predict", "duration_ms": 12.5, "input_chars": 40, "tokens_in": 7, "cost_usd": 0.5}
            bad = {
                "name": ["other", "dspy.Predict"],
                "duration_ms": 90,
                "ok": False,
                "error": "timeout",
                "limit_ms": 90,
            }
            answer = site.post("/api/v1/usage", json={"calls": [good, bad]}, headers=bearer)
            assert (answer.status_code, answer.json()) == (202, {"recorded": 2})
            wrong = {"calls": [{"name": "", "duration_ms": -1, "error": "luck", "surprise": 1}]}
            refused = site.post("/api/v1/usage", json=wrong, headers=bearer)
            assert refused.status_code == 422
            for field in ("name", "duration_ms", "error", "surprise"):
                assert f"calls.0.{field}" in refused.json()["error"]["message"]
            too_many = {"calls": [good] * 1001}
            assert site.post("/api/v1/usage", json=too_many, headers=bearer).status_code == 422
            assert site.post("/api/v1/usage", content=b"x" * 2**21, headers=bearer).status_code == 413
            assert site.post("/api/v1/usage", content=b"{", headers=bearer).status_code == 422
        done = run("stats", "dspy.Predict", "--json", "--path", registry_folder)
        (usage,) = json.loads(done.stdout)["usage"]
        assert (usage["calls"], usage["errors"], usage["tokens_in"], usage["cost_usd"]) == (2, 1, 7, 0.5)


def test_an_endless_body_is_cut_off(closed_site: Explorer) -> None:
    address = urlsplit(closed_site.url)
    with socket.create_connection((address.hostname, address.port), 60) as peer:
        head = f"POST /api/v1/usage HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n"
        peer.sendall(f"{head}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(40):
                peer.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    assert closed_site.get("/static/explorer.css").status_code == 200
