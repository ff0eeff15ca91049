"""The JSON beside each page, under `/api/v1`."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from dspy_registry.cli.console import encode_json
from dspy_registry.explorer import access
from dspy_registry.explorer.ask import QuestionQuery
from dspy_registry.explorer.changes import SHOWN
from dspy_registry.explorer.filters import AskedQuery
from dspy_registry.explorer.heads import is_head
from dspy_registry.explorer.number_fields import WHOLE
from dspy_registry.explorer.refusals import error
from dspy_registry.explorer.reported_calls import ReportedCalls, record
from dspy_registry.explorer.site import Site
from dspy_registry.registry_store.number_text import whole_number

PREFIX = "/api/v1"


class Json(Response):
    """Text that is no UTF-8, as a command's arguments may be, is escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of a value."""
        return encode_json(content)


def refusal(status: int, kind: str, message: str, remedy: str = "") -> Json:
    """An error, in the form that the command line has too."""
    return Json(error(kind, message, remedy), status)


class Problem(BaseModel):
    """What is wrong, and what to do."""

    type: str
    message: str
    remedy: str


class Refusal(BaseModel):
    """The body of every answer that is an error."""

    error: Problem


_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": Refusal, "description": "The request is refused, and changed nothing."},
    "5XX": {"model": Refusal, "description": "The registry cannot be read, or the explorer has a fault."},
}


def api(site: Site) -> APIRouter:
    """The routes of one site. Its token is described here; `access.Guard` asks for it."""
    wants = [Depends(HTTPBearer(auto_error=False))] if site.token is not None else []
    router = APIRouter(prefix=PREFIX, default_response_class=Json, responses=_ERRORS, dependencies=wants)
    _reading(router, site)
    _live(router, site)
    _reporting(router, site)
    return router


def _reading(router: APIRouter, site: Site) -> None:
    @router.get("/state", summary="What the strip shows")
    def state() -> Json:
        """Daemon, revision, last commit, manifest errors, overrides, circuits not closed, laggards, the cluster."""
        return Json(site.strip())

    @router.get("/modules", summary="Modules by use")
    def modules(asked: AskedQuery) -> Json:
        """A page of modules that meet every condition, most used first. The conditions are those of `find`."""
        return Json(site.modules(asked))

    @router.get("/modules/{name:path}", summary="One module")
    def module(name: str) -> Json:
        """Fields and who declared them, versions and their differences, usage by size and version.

        `name` is a full name, an alias or a short name; of an unregistered module, its full name.
        """
        return Json(site.module(name))

    @router.get("/route", summary="Which module to call")
    def route(question: QuestionQuery) -> Json:
        """Candidates best first, with their numbers, and exclusions with their reasons: what `Registry.route` answers.

        `chosen` is null when nothing is left.
        """
        return Json(site.route(question))

    @router.get("/changes", summary="The newest changes")
    def changes(count: Annotated[int, WHOLE, Query(ge=1, le=SHOWN)] = SHOWN) -> Json:
        """The newest commits that readers can see, newest first."""
        return Json(site.changes(count))

    @router.get("/store", summary="Readers, snapshots, file growth")
    def store() -> Json:
        """What `dspy-registry status` says, and the size of the data file over the last two hours at most."""
        return Json(site.store())

    @router.get("/health", summary="What is not healthy")
    def health() -> Json:
        """The circuits that are not closed. `until` is Unix time."""
        return Json({"health": site.registry.health()})


def _revision(text: str) -> int | None:
    """The revision that an event's id stands for. None: it is not a revision."""
    found = whole_number(text)
    return found if found is not None and 0 <= found < 2**53 else None


def _live(router: APIRouter, site: Site) -> None:
    @router.get("/events", summary="Changes and health, as they happen", response_class=StreamingResponse)
    async def events(request: Request, last_event_id: Annotated[str, Header()] = "") -> Response:
        """Server-sent events: `hello`, `change`, `health`, and `reload` for a listener that was too slow.

        The id of a change is its revision. A listener that connects again with `Last-Event-ID` gets what it missed.
        """
        if is_head(request.scope):
            return Response(media_type="text/event-stream")
        return StreamingResponse(site.events.stream(_revision(last_event_id)), media_type="text/event-stream")


def _reporting(router: APIRouter, site: Site) -> None:
    @router.post("/usage", status_code=202, summary="Report calls")
    async def usage(reported: ReportedCalls, request: Request) -> Json:
        """Report calls that have ended, at most 1,000 at once. Needs `Authorization: Bearer TOKEN`, not a cookie.

        They are sent to the daemon about once a second, and kept within bounds while there is none.
        """
        if not access.has_bearer(request.headers.get("authorization", ""), site.token):
            remedy = "Start `dspy-registry ui` with --token-file, and send Authorization: Bearer TOKEN."
            return refusal(403, "StorePermissionError", "reporting calls needs the explorer's token.", remedy)
        return Json({"recorded": await run_in_threadpool(record, site.reporter, reported)}, 202)
