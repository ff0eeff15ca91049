"""Make the picture of the explorer in docs/images, from a registry that this makes.

python tools/screenshots.py [FOLDER]    # default: docs/images; needs the extra [browser] and Debian's chromium
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dspy_registry import ModuleInfo, Requirements, UsageReporter, WriterClient  # noqa: E402
from tests.support.command import daemon  # noqa: E402
from tests.support.explorer import browser, explorer  # noqa: E402

SIZES = {"": 1280, "-400": 400, "-2000": 2000}
PAGES = {"explorer": "/", "module": "/modules/acme.Answer", "ask": "/ask?capabilities=reasoning&input_size=1800",
         "changes": "/changes", "store": "/store"}  # fmt: skip
MODULES = (
    # name, capabilities, pool, declared ms, calls, median ms, share that fails
    ("acme.Answer", ("question_answering",), "general", 1200, 900, 980, 0.02),
    ("acme.Summarise", ("summarisation",), "general", 2500, 420, 1900, 0.004),
    ("acme.Rerank", ("semantic_search",), "neural", 300, 380, 210, 0.3),
    ("acme.Extract", ("extraction", "structured_output"), "general", 1500, 160, 1600, 0.0),
    ("acme.Plan", ("reasoning", "tool_use"), "optimizer", 6000, 90, 5200, 0.03),
    ("dspy.ChainOfThought", (), "", 0, 140, 2700, 0.01),
    ("dspy.Predict", (), "", 0, 60, 700, 0.0),
)


def fill(path: Path) -> None:
    """Modules with an hour of calls; the same every time but for the moment."""
    chance = random.Random(15)
    with WriterClient(path) as client, UsageReporter(path) as reporter:
        for name, capabilities, pool, declared, *_ in MODULES:
            if declared:
                client.register_module(
                    ModuleInfo(name, "prediction", capabilities, Requirements(), pool, declared + 300)
                )
        for name, _, _, _, calls, median, failing in MODULES:
            for _ in range(calls):
                duration = median * chance.lognormvariate(0, 0.35)
                kind = chance.choice(("timeout", "error", "rate_limited")) if chance.random() < failing else None
                began = time.monotonic() - 3500 * chance.random() ** 1.5 - duration / 1000
                size = chance.choice((60, 600, 600, 4000))
                reporter.record(name, duration, kind is None, size, 400, 90, 0.0005, error=kind, began=began, version=1)
        reporter.flush(30)
        for name, capabilities, pool, declared, *_ in MODULES[:3]:
            info = ModuleInfo(name, "prediction", (*capabilities, "streaming"), Requirements("medium"), pool, declared)
            client.register_module(info)


def main(folder: Path, every: bool) -> None:
    """Only the README's picture, or every page at every size."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "registry"
        with daemon(path):
            fill(path)
            with explorer(path) as site, browser() as chromium:
                for page_name, address in PAGES.items():
                    for suffix, width in SIZES.items():
                        if every or (page_name, suffix) == ("explorer", ""):
                            page = chromium.new_page(viewport={"width": width, "height": 760})
                            page.goto(site.url + address)
                            page.screenshot(path=folder / f"{page_name}{suffix}.png")
                            page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images", every=len(sys.argv) > 1)
