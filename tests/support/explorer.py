"""A running `dspy-registry ui`, and Debian's browser to look at it with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from dspy_registry import RegistryWriter
from tests.support import fork_server
from tests.support.fork_server import Forked

_IMPORTS = (*fork_server.WHAT_MOST_NEED, "dspy_registry.explorer.app", "uvicorn", "tests.support.command")
_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""

TOKEN = "a-token-of-some-length"
BEARER = {"authorization": f"Bearer {TOKEN}"}


class Explorer:
    """Its address, and requests to it."""

    def __init__(self, url: str, process: Forked) -> None:
        self.url = url.rstrip("/")
        self.process = process
        self._client = httpx.Client(timeout=60, trust_env=False)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._client.get(self.url + path, **options)

    def json(self, path: str) -> Any:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._client.post(self.url + path, **options)

    def close(self) -> None:
        self._client.close()


@contextmanager
def explorer(registry: Path, *options: str, **environment: str) -> Iterator[Explorer]:
    """The explorer of a registry at a free port. It must end well when asked to, and have complained of nothing."""
    process = fork_server.start(
        "tests.support.command",
        "main_in_child",
        *("ui", "--port", "0", "--path", registry, *options),
        environment={**os.environ, **environment},
        imports=_IMPORTS,
        stderr=subprocess.PIPE,
    )
    try:
        line = process.stderr.readline()
        assert " is at http" in line, line + process.stderr.read()
        with closing(Explorer(line.split()[-1], process)) as running:
            yield running
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert (process.wait(60), said) == (0, "")
    finally:
        process.kill()
        process.wait()
        process.close()


@contextmanager
def empty_site(folder: Path) -> Iterator[Explorer]:
    """The explorer of a new registry, which asks for TOKEN."""
    with RegistryWriter(folder):
        pass
    with explorer(folder, DSPY_REGISTRY_UI_TOKEN=TOKEN) as running:
        yield running


@contextmanager
def browser() -> Iterator[Any]:
    """Debian's Chromium without a window. Skips the test where it or what drives it is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not _CHROMIUM:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


class Looked:
    """A page of the browser that notes what should not happen: console errors, requests elsewhere."""

    def __init__(self, browser: Any, explorer: Explorer, **options: Any) -> None:
        self.explorer = explorer
        self.page = browser.new_page(**options)
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda message: message.type in ("error", "warning") and self._note(message.text))
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on("request", lambda request: self._look(request.url))

    def _note(self, text: str) -> None:
        self.complaints.append(text)

    def _look(self, url: str) -> None:
        if urlsplit(url).netloc != urlsplit(self.explorer.url).netloc:
            self.elsewhere.append(url)

    def go(self, path: str) -> Any:
        self.page.goto(self.explorer.url + path)
        return self.page

    def close(self) -> None:
        self.page.close()
        assert (self.complaints, self.elsewhere) == ([], [])
