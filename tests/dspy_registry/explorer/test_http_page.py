"""Each example of docs/http.md is run with curl."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("jinja2")

from tests.support import ROOT
from tests.support.explorer import TOKEN, Explorer, empty_site

pytestmark = pytest.mark.xdist_group("explorer")

PAGE = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\$ (curl .*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    with empty_site(tmp_path_factory.mktemp("page") / "registry") as running:
        yield running


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.split("$URL")[1][:30])
def test_an_example_answers(site: Explorer, example: str, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["bash", "-c", example],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "URL": site.url, "TOKEN": TOKEN},
    )
    if "events" in example:
        assert "event: hello" in done.stdout  # curl ends by its time limit
        return
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_every_endpoint_has_an_example(site: Explorer) -> None:
    described = site.get("/api/v1/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).json()
    stems = {path.split("{")[0] for path in described["paths"]}
    assert {stem for stem in stems if not any(f"$URL{stem}" in example for example in EXAMPLES)} == set()
