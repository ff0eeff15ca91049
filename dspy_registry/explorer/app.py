"""The explorer as an ASGI application, and the server that runs it."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import signal
import socket
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from dspy_registry.explorer import access
from dspy_registry.explorer.api import PREFIX, api, refusal
from dspy_registry.explorer.body_limit import BodyLimit
from dspy_registry.explorer.heads import HeadAsGet, allowed
from dspy_registry.explorer.pages import pages, templates
from dspy_registry.explorer.refusals import is_for_programs
from dspy_registry.explorer.site import Site
from dspy_registry.registry_store.errors import (
    AmbiguousNameError,
    InvalidArgumentError,
    NotPossibleError,
    RegistryError,
    UnknownLabelError,
    UnknownModuleError,
    UnknownVersionError,
)

DEFAULT_PORT: Final = 8712
_STATUS: Final = (
    ((UnknownModuleError, UnknownVersionError, UnknownLabelError), 404),
    (AmbiguousNameError, 409),
    (InvalidArgumentError, 400),
)


def create_app(site: Site, names: Collection[str] = ()) -> Any:
    """The ASGI application of a site. `names` are the host names that it answers to, beside addresses and localhost."""

    @contextlib.asynccontextmanager
    async def span(_: FastAPI) -> AsyncIterator[None]:
        async with site.running():
            yield

    app = FastAPI(
        title="DSPy Module Registry",
        version=importlib.metadata.version("dspy-module-registry"),
        description="What one host's registry holds. Everything but `POST /api/v1/usage` only reads.",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # they load their code from elsewhere
        redoc_url=None,
        lifespan=span,
    )
    environment = templates()
    app.include_router(api(site))
    app.include_router(pages(site, environment))
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")

    def told(request: Request, status: int, kind: str, message: str, remedy: str = "") -> Response:
        if is_for_programs(request.url.path):
            return refusal(status, kind, message, remedy)
        text = environment.get_template("problem.html").render(title="Problem", message=message, remedy=remedy)
        return HTMLResponse(text.encode("utf-8", "backslashreplace"), status)

    @app.exception_handler(RegistryError)
    async def registry_error(request: Request, error: RegistryError) -> Response:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 503)
        return told(request, status, type(error).__name__, error.message, error.remedy)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return told(request, 422, "InvalidArgumentError", _all_that_is_wrong(error), "Nothing was taken.")

    @app.exception_handler(HTTPException)
    async def plain_problem(request: Request, error: HTTPException) -> Response:
        answer = told(request, error.status_code, "HTTPError", str(error.detail))
        for name, value in (error.headers or {}).items():
            answer.headers[name] = allowed(value) if name.lower() == "allow" else value
        return answer

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        """A fault of the explorer. The server logs where it was."""
        message = "the explorer failed to answer this request."
        return told(request, 500, "InternalError", message, "The explorer's log tells where. Please report it.")

    return HeadAsGet(access.Guard(BodyLimit(app), site.token, names))


def _all_that_is_wrong(error: RequestValidationError) -> str:
    found = error.errors()
    told = [
        f"{'.'.join(str(part) for part in each['loc'][1:])}: {each['msg'].removeprefix(_PYDANTICS)}"
        for each in found[:_MOST_TOLD]
    ]
    return "; ".join([*told, *([f"and {len(found) - _MOST_TOLD} more"] if len(found) > _MOST_TOLD else [])])


_MOST_TOLD: Final = 50
_PYDANTICS: Final = "Value error, "


class Server(uvicorn.Server):
    """uvicorn's server, which says when it can be asked.

    Its streams see that it is to end. Else it would wait for each browser that listens.
    """

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and then it is told."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    @property
    def is_ending(self) -> bool:
        """Whether it was told to stop."""
        return self.should_exit


def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    token: str | None = None,
    names: Collection[str] = (),
    shown_folder: str | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the explorer of the registry in `folder` until SIGTERM or SIGINT. `ready` is called with its address.

    `token` is wanted of everybody, unless None. Raises InvalidArgumentError for another address than a loopback one
    without a token, RegistryNotFoundError, and NotPossibleError when the address is taken.
    """
    token = access.checked_token(host, token)
    config = uvicorn.Config(
        "",
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 * 1024,
    )
    listener = _bound(host, port)
    url = f"http://{_shown(host, listener.getsockname()[1])}/"
    server = Server(config, lambda: ready(url))
    site = Site(folder, token=token, shown_folder=shown_folder, is_ending=lambda: server.is_ending)
    config.app = create_app(site, names)
    with _signals_ignored_afterwards():
        server.run([listener])


def _bound(host: str, port: int) -> socket.socket:
    """As uvicorn would bind it, which says neither the address nor what helps."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        is_taken = error.errno == errno.EADDRINUSE
        raise NotPossibleError(
            f"{_shown(host, port)} is in use."
            if is_taken
            else f"nothing can be served at {_shown(host, port)}: {error.strerror or error}.",
            remedy="Name another port with --port." if is_taken else "Name another address with --host and --port.",
        ) from error
    return listener


def _shown(host: str, port: int) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def _signals_ignored_afterwards() -> Any:
    """uvicorn raises the signal that ended it once more, which would end this process before it returns."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
