"""Make the picture of the explorer in docs/images, from a registry that this makes.

python tools/screenshots.py [FOLDER]    # default: docs/images; needs the extra [browser] and Debian's chromium
"""

from __future__ import annotations

import math
import os
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dspy_registry import ModuleInfo, Requirements, WriterClient  # noqa: E402
from dspy_registry.writer.client.pending_calls import Pending  # noqa: E402
from dspy_registry.writer.client.recorded_call import Moment  # noqa: E402
from dspy_registry.writer.client.report_link import ReportLink  # noqa: E402
from tests.support.explorer import browser, explorer  # noqa: E402
from tests.support.metrics import measured_daemon  # noqa: E402

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
    """Modules in two versions, a label, an open circuit, an hour of calls: the same each time but for the moment."""
    with WriterClient(path) as client:
        for name, capabilities, pool, declared, *_ in MODULES:
            if declared:
                client.register_module(
                    ModuleInfo(name, "prediction", capabilities, Requirements(), pool, declared + 300)
                )
        for name, capabilities, pool, declared, *_ in MODULES[:4]:
            info = ModuleInfo(name, "prediction", (*capabilities, "streaming"), Requirements("medium"), pool, declared)
            client.register_module(info)
        client.set_label("acme.Answer", "live", {1: 20, 2: 80})
        report_an_hour(path)
        client.open_circuit("acme.Rerank", 300.0)


def report_an_hour(path: Path) -> None:
    """What reporters would have sent minute by minute."""
    chance, link = random.Random(15), ReportLink(path)
    now, monotonic = time.time_ns() // 1_000_000, time.monotonic()
    for minute in range(59, -1, -1):
        pending = Pending()
        moment = Moment(now - 60_000 * minute, now - 60_000 * (minute + 1), monotonic - 60 * minute)
        wave = 1 + 0.6 * math.sin((59 - minute) / 9)
        for name, _, _, declared, calls, median, failing in MODULES:
            for _ in range(int(calls / 60 * wave + chance.random())):
                is_bad = chance.random() < failing * (3 if minute < 12 else 0.4)
                kind = chance.choice(("unavailable", "error", "rate_limited")) if is_bad else None
                size = chance.choice((60, 600, 600, 4000))
                duration = median * chance.lognormvariate(0, 0.35) * (1.6 if size > 1000 else 1)
                version = chance.choice((1, 2, 2, 2)) if declared and (name, declared) != ("acme.Plan", 6000) else 1
                call = (name, duration, kind is None, size, 400, 90, 0.0005, kind, version, None, None, None)
                pending.add(call, moment)
        for _, batch in pending.take(os.urandom(16), 1):
            assert link.send(batch, 30) is None


def main(folder: Path, every: bool) -> None:
    """Only the README's picture, or every page at every size."""
    with tempfile.TemporaryDirectory() as temporary:
        path, manifests = Path(temporary) / "registry", Path(temporary) / "manifests"
        manifests.mkdir()
        (manifests / "acme.toml").write_text('[[modules]]\nname = "acme.Translate"\nestimated_duration = "fast"\n')
        with measured_daemon(path, "--manifests", str(manifests)):
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
