"""The form, the JSON, the call in Python and the command ask the same and get the same."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("jinja2")

from dspy_registry import ModuleInfo, Registry, RegistryWriter
from dspy_registry.readers.route import Route
from tests.support.command import run
from tests.support.explorer import Explorer, explorer
from tests.support.selection import each

pytestmark = pytest.mark.xdist_group("explorer")

KEYS = ("user-1", "user-2", "user-3", "user-4", "user-17", " user-17", "Zoë & Co; $HOME", "-k")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("asking") / "registry"
    with RegistryWriter(path) as writer:
        for name in ("acme.Qa", "acme.Quick", "-acme.Odd"):
            for duration in (1200, 1500):
                writer.register_module(ModuleInfo(name, capabilities=("answering",), estimated_duration=duration))
        writer.set_label("acme.Qa", "live", {1: 50, 2: 50})
        writer.set_label("acme.Quick", "live", 1)
        writer.set_label("-acme.Odd", "live", 2)
        writer.register_module(ModuleInfo("acme.Unlabelled", capabilities=("answering",)))
    return path


@pytest.fixture(scope="module")
def site(registry: Path) -> Iterator[Explorer]:
    with explorer(registry) as running:
        yield running


def ranked(route: Route) -> list[tuple[str, int]]:
    return [(each.name, each.version) for each in route.alternatives]


@pytest.mark.parametrize("key", each(3, KEYS))
@pytest.mark.parametrize(
    "question",
    [
        {"names": "acme.Qa", "label": "live"},
        {"names": "acme.Qa acme.Quick@2", "label": "live"},
        {"names": "-acme.Odd,acme.Qa", "label": "live", "exclude": "acme.Quick"},
        {"capabilities": "answering", "label": "live"},
        {"names": "acme.Qa@live"},
    ],
)
def test_a_label_and_a_key_mean_the_same_everywhere(
    site: Explorer, registry: Path, question: dict[str, str], key: str
) -> None:
    answer = site.get("/api/v1/route", params={**question, "key": key})
    found = answer.json()
    told = [(each["name"], each["version"]) for each in found["candidates"]]
    with Registry(registry) as reader:
        assert ranked(eval(found["python"], {"registry": reader})) == told
    assert f"key={key!r}" in found["python"]
    command = shlex.split(found["command"])
    done = run(*command[1:2], "--json", *command[2:])
    assert done.returncode == 0, done.stderr
    assert [(each["name"], each["version"]) for each in json.loads(done.stdout)["alternatives"]] == told
    page = html.unescape(site.get("/ask", params={**question, "key": key}).text)
    assert found["python"] in page
    assert found["command"] in page
    assert f'name="key" value="{key}"' in page
    assert f'name="label" value="{question.get("label", "")}"' in page


def test_both_versions_of_a_divided_label_are_met(site: Explorer) -> None:
    asked = [
        site.json(f"/api/v1/route?names=acme.Qa&label=live&key=user-{number}")["chosen"]["version"]
        for number in range(20)
    ]
    assert set(asked) == {1, 2}


def test_a_module_without_the_label_is_no_candidate(site: Explorer) -> None:
    found = site.json("/api/v1/route?capabilities=answering&label=live&key=user-1")
    assert "acme.Unlabelled" not in {each["name"] for each in found["candidates"]}


def test_an_unknown_label_is_told_on_the_page_and_as_json(site: Explorer) -> None:
    refused = site.get("/api/v1/route?names=acme.Qa&label=nobody")
    assert (refused.status_code, refused.json()["error"]["type"]) == (404, "UnknownLabelError")
    page = site.get("/ask?names=acme.Qa&label=nobody")
    assert page.status_code == 200
    assert "nobody" in page.text
    assert 'role="alert"' in page.text


def test_numbers_are_passed_on_whole(site: Explorer) -> None:
    found = site.json("/api/v1/route?names=dspy.Predict&deadline_ms=1234567.25&max_cost_usd=0.00012345678")
    assert "--deadline 1234567.25 --max-cost 0.00012345678" in found["command"]


def test_the_api_describes_both(site: Explorer) -> None:
    asked = site.json("/api/v1/openapi.json")["paths"]["/api/v1/route"]["get"]["parameters"]
    assert {"label", "key"} <= {each["name"] for each in asked}
