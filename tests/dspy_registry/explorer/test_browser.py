"""The explorer in a real browser: every page, live changes, filters, the form, and whether everybody can use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("playwright")

from dspy_registry import ModuleInfo, RegistryWriter, UsageReporter, WriterClient
from tests.support.command import daemon
from tests.support.explorer import Explorer, Looked, browser, explorer

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.filterwarnings("ignore::ResourceWarning")]

PAGES = ("/", "/modules/acme.Qa", "/ask?capabilities=reasoning&exclude=dspy.ReAct", "/changes", "/store")
LONG = f"acme.{'W' * 240}"
SIZES = (400, 1280, 2000)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("browser") / "registry"
    with RegistryWriter(path):
        pass
    with daemon(path):
        with WriterClient(path) as client, UsageReporter(path) as reporter:
            client.register_module(ModuleInfo("acme.Qa", capabilities=("answering",), estimated_duration=1200))
            for call in range(60):
                reporter.record("acme.Qa", 500.0 + 20 * call, call % 6 > 0, 500, error=None if call % 6 else "error")
            assert reporter.flush(60)
            client.register_module(ModuleInfo("acme.Qa", capabilities=("answering", "reasoning")))
            client.register_module(ModuleInfo(LONG, capabilities=("reasoning",), estimated_duration=1))
        yield path


@pytest.fixture(scope="module")
def site(registry: Path) -> Iterator[Explorer]:
    with explorer(registry) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture
def looked(chromium: Any, site: Explorer) -> Iterator[Looked]:
    """A page that must make no console error and no request elsewhere."""
    opened = Looked(chromium, site, viewport={"width": 1280, "height": 900})
    yield opened
    opened.close()


def test_a_change_is_seen_on_an_open_page(looked: Looked, registry: Path) -> None:
    page = looked.go("/changes")
    page.get_by_text("Live.").wait_for()
    with WriterClient(registry) as client:
        revision = client.register_module(ModuleInfo("acme.SeenLive"))
    page.locator(f"#revision-{revision}").wait_for()
    assert page.locator("#revision").inner_text() == str(revision)


@pytest.mark.full
def test_every_change_is_seen_live(looked: Looked, registry: Path) -> None:
    """`pytest -s` says how long that takes: 300 ms are allowed."""
    page = looked.go("/changes")
    page.get_by_text("Live.").wait_for()
    took = []
    with WriterClient(registry) as client:
        for number in range(7):
            page.wait_for_timeout(400)
            waits = page.evaluate_handle(
                """before => ({began: 0, seen: new Promise(done => {
                    const look = () => document.getElementById("revision").textContent !== before
                        ? done(performance.timeOrigin + performance.now()) : requestAnimationFrame(look);
                    look();
                })})""",
                page.locator("#revision").inner_text(),
            )
            began = page.evaluate("performance.timeOrigin + performance.now()")
            client.register_module(ModuleInfo(f"acme.Timed{number}"))
            took.append(page.evaluate("waits => waits.seen", waits) - began)
    print(f"from the call to the page: median {sorted(took)[len(took) // 2]:.0f} ms, longest {max(took):.0f} ms")


@pytest.mark.full
def test_filters_and_search_by_keyboard(looked: Looked) -> None:
    page = looked.go("/")
    page.keyboard.press("/")
    page.keyboard.type("colbert")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?q=colbert*")
    assert page.locator("tbody th a").all_inner_texts() == ["dspy.ColBERTv2"]
    page.get_by_text("Show all").click()
    page.get_by_text("More conditions").click()
    page.get_by_label("Needs a GPU").select_option("yes")
    page.get_by_role("button", name="Find").click()
    page.wait_for_url("**gpu=yes*")
    assert page.locator("tbody th a").all_inner_texts() == ["dspy.ColBERTv2"]
    assert "dspy-registry find --gpu" in page.locator("#found").inner_text()


@pytest.mark.full
def test_the_form_asks_the_registry(looked: Looked) -> None:
    page = looked.go("/ask")
    page.get_by_label("Capabilities, all of").fill("reasoning")
    page.get_by_label("Input size").fill("1800")
    page.get_by_label("Exclude").fill("dspy.ReAct")
    page.get_by_role("button", name="Ask").click()
    page.locator("#chosen").wait_for()
    answer = page.locator("#answer").inner_text()
    assert "the caller excludes it" in answer
    assert "registry.route(capabilities=('reasoning',), exclude=('dspy.ReAct',), input_size=1800)" in answer


@pytest.mark.full
def test_a_part_that_is_worked_in_is_left_alone(looked: Looked, registry: Path) -> None:
    page = looked.go("/")
    page.get_by_text("Live.").wait_for()
    page.locator("#search").fill("half a wor")
    with WriterClient(registry) as client:
        revision = client.register_module(ModuleInfo("acme.Meanwhile"))
    page.locator("#revision", has_text=str(revision)).wait_for()
    assert page.locator("#search").input_value() == "half a wor"


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_everybody_can_use_every_page(chromium: Any, site: Explorer, path: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    looked = Looked(chromium, site, viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page = looked.go(path)
    found = axe.Axe().run(page).response["violations"]
    serious = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found if each["impact"] != "minor"]
    assert serious == []
    looked.close()


@pytest.mark.full
@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("path", [*PAGES, f"/modules/{LONG}", f"/ask?names={LONG}", "/?category=" + "w" * 300])
def test_no_page_is_wider_than_its_window(chromium: Any, site: Explorer, path: str, width: int) -> None:
    looked = Looked(chromium, site, viewport={"width": width, "height": 900})
    page = looked.go(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    looked.close()


@pytest.mark.full
@pytest.mark.parametrize("width", SIZES)
def test_what_goes_on_beyond_an_edge_is_hinted_at(chromium: Any, site: Explorer, width: int) -> None:
    looked = Looked(chromium, site, viewport={"width": width, "height": 900})
    page = looked.go("/")
    hidden = page.evaluate("(area => area.scrollWidth - area.clientWidth)(document.querySelector('.scroll'))")
    assert (hidden > 1) is (width == 400)
    assert page.locator(".scroll.more").count() == (width == 400)
    page.evaluate("document.querySelector('.scroll').scrollLeft = 10000")
    page.wait_for_function("document.querySelector('.scroll.more') === null")
    looked.close()


@pytest.mark.full
@pytest.mark.parametrize("path", PAGES)
def test_every_page_can_be_read_without_javascript(chromium: Any, site: Explorer, path: str) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site.url + path)
    assert page.locator("main h1").inner_text()
    assert page.locator("#strip dd").count() == 7
    context.close()
