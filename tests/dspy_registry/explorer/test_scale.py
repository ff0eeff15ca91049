"""The explorer of a registry with 100,000 modules in use: no page is large. `pytest -s` shows how quick they are."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("jinja2")

import httpx

from dspy_registry import ModuleInfo, RegistryWriter
from dspy_registry.explorer.filters import Asked
from dspy_registry.explorer.site import Site
from dspy_registry.registry_store.usage import ModuleUsage
from dspy_registry.registry_store.usage_rows import Row, row_codec
from tests.support.explorer import explorer

MODULES = 100_000
LARGEST_PAGE = 200_000


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_hundred_thousand_modules_in_use(tmp_path: Path) -> None:
    path = tmp_path / "registry"
    names = [f"acme.team{number % 97}.{'Longer' * 8}{number:06d}" for number in range(MODULES)]
    with RegistryWriter(path) as writer:
        writer.register_modules(
            [ModuleInfo(name, capabilities=tuple(f"capability_{n}" for n in range(12))) for name in names]
        )

        def use(draft: object) -> None:
            for number, name in enumerate(names):
                row = Row(ModuleUsage(name, 1 + number % 5000, number % 50), {})
                draft.usage[name.encode()] = row_codec.dump(row, name.encode(), 2)  # type: ignore[attr-defined]

        writer.store.committer.commit(use)
    site = Site(path)
    site._start()
    try:
        site.modules(Asked())
        took = []
        for _ in range(9):
            began = time.perf_counter()
            site.modules(Asked())
            took.append(time.perf_counter() - began)
        print(f"what the first page shows: median {1000 * statistics.median(took):.0f} ms")
    finally:
        site._stop()
    with explorer(path) as served:
        took = []
        with httpx.Client(base_url=served.url, timeout=60) as visitor:
            visitor.get("/")
            for _ in range(9):
                began = time.perf_counter()
                visitor.get("/")
                took.append(time.perf_counter() - began)
        print(f"the first page over a connection: median {1000 * statistics.median(took):.0f} ms")
        asked = f"names={'+'.join(names[:64])}"
        addresses = ("/", "/?page=2000", "/?capabilities=capability_3&q=team3", f"/modules/{names[0]}", "/changes")
        for address in (*addresses, "/ask", f"/ask?{asked}", "/store"):
            answer = served.get(address)
            assert answer.status_code == 200
            assert len(answer.content) < LARGEST_PAGE
        for address in ("modules", f"route?{asked}", "state", "store"):
            assert len(served.get(f"/api/v1/{address}").content) < LARGEST_PAGE, address
