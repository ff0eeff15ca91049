"""The pages. Each is a template filled with what its JSON has, and can be read without JavaScript."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlencode

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from dspy_registry.cli.console import encode_json
from dspy_registry.explorer import access, charts, filters, one_module
from dspy_registry.explorer import changes as changed
from dspy_registry.explorer.ask import QuestionQuery
from dspy_registry.explorer.filters import Asked, AskedQuery
from dspy_registry.explorer.rows import alarm
from dspy_registry.explorer.site import Site
from dspy_registry.readers.ranking import PRIOR_RATE
from dspy_registry.registry_store.changes import shown_requester
from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.usage import SIZES
from dspy_registry.registry_store.vocabulary import LEVELS

_HERE: Final = Path(__file__).parent
_LONGEST_LOGIN: Final = 4096
LONGEST_VALUE: Final = 600
"""Characters of one value on a page. The JSON has all of it."""
_GROWTH_WIDTH, _GROWTH_HEIGHT = 560, 80


def templates() -> Environment:
    """The templates, with what they need beside the facts."""
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ms=charts.milliseconds,
        size=charts.size,
        when=when,
        iso=iso,
        share=share,
        alarm=alarm,
        value=shortened,
        shares=named,
        by=by,
        told=told,
        unlisted=changed.unlisted,
        plain=lambda number: "" if number is None else str(number).removesuffix(".0"),
        count=lambda number: "–" if number is None else f"{number:,}",
        query=urlencode,
    )
    environment.globals.update(
        zone=zone,
        sparkline=charts.sparkline,
        chart_width=charts.WIDTH,
        chart_height=charts.HEIGHT,
        assumed_rate=PRIOR_RATE,
    )
    return environment


def when(milliseconds: float | None) -> str:
    """Local time for people; "never" for 0 and None."""
    if not milliseconds:
        return "never"
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def told(message: str) -> Markup:
    """An error's message or remedy as a sentence; what stands in backquotes is a command, and shown as one."""
    parts = [escape(part) for part in shortened(message[:1].upper() + message[1:]).split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))


def zone() -> str:
    """The zone of the times that `when` gives, such as "CET (UTC+01:00)"."""
    now = datetime.now().astimezone()
    offset = now.strftime("%z")
    return f"{now:%Z}" if now.tzname() == "UTC" else f"{now:%Z} (UTC{offset[:3]}:{offset[3:5]})"


def iso(milliseconds: float) -> str:
    """The same for programs."""
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(timespec="seconds")


def share(rate: float | None) -> str:
    """A share as a percentage."""
    return "–" if rate is None else f"{rate * 100:.1f}\N{NO-BREAK SPACE}%"


def named(shares: dict[str, float]) -> str:
    """What a label names: "version 3", or "version 3: 90 %, version 4: 10 %", or "nothing"."""
    if len(shares) == 1:
        return f"version {next(iter(shares))}"
    return (
        ", ".join(f"version {version}: {share:.3g}\N{NO-BREAK SPACE}%" for version, share in shares.items())
        or "nothing"
    )


def by(requester: str) -> str:
    """Who asked for a change, as the end of a sentence; "": it is not known."""
    return "" if requester == shown_requester(None) else f", by {requester}"


def shortened(value: Any) -> str:
    """A value as text: words as they are, others as JSON, at most LONGEST_VALUE characters."""
    if value is None or value == [] or value == {}:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        text = ", ".join(value[:100]) + (f", and {len(value) - 100} more" if len(value) > 100 else "")
    else:
        text = value if isinstance(value, str) else msgspec.json.format(encode_json(value), indent=0).decode()
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(text):,} characters)"


def pages(site: Site, environment: Environment) -> APIRouter:
    """The routes of one site."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    def page(template: str, title: str, json: str, status: int = 200, **facts: Any) -> HTMLResponse:
        text = environment.get_template(template).render(
            title=title, json=json, strip=site.strip(), folder=str(site.folder), **facts
        )
        return HTMLResponse(text.encode("utf-8", "backslashreplace"), status)

    _reading(router, site, page)
    if site.token is not None:
        _login(router, site.token, environment)
    return router


Page = Callable[..., HTMLResponse]


def _reading(router: APIRouter, site: Site, page: Page) -> None:
    @router.get("/")
    def modules(asked: AskedQuery, request: Request) -> HTMLResponse:
        found = site.modules(asked)
        query = str(request.url.query)
        return page(
            "modules.html",
            "Modules by use",
            f"/api/v1/modules{'?' if query else ''}{query}",
            asked=asked,
            found=found,
            levels=LEVELS,
            links=_page_links(asked, found, site.shown_folder),
        )

    @router.get("/modules/{name:path}")
    def module(name: str) -> HTMLResponse:
        found = site.module(name)
        json = f"/api/v1/modules/{quote(found['name'], errors='surrogateescape')}"
        return page(
            "module.html",
            found["name"],
            json,
            module=found,
            chart=chart_of(found),
            release=one_module.release_command(found["name"], site.shown_folder),
        )

    @router.get("/ask")
    def ask(asked: QuestionQuery, request: Request) -> HTMLResponse:
        found, problem, query = None, "", str(request.url.query)
        if query:
            try:
                found = site.route(asked)
            except RegistryError as error:
                problem = f"{error.message} {error.remedy}".strip()
        json = f"/api/v1/route?{query}" if found else "/api/v1/openapi.json"
        return page("ask.html", "Ask the registry", json, asked=asked, found=found, problem=problem, levels=LEVELS)

    @router.get("/changes")
    def changes() -> HTMLResponse:
        return page("changes.html", "Live changes", "/api/v1/changes", found=site.changes())

    @router.get("/store")
    def store() -> HTMLResponse:
        found = site.store()
        return page(
            "store.html",
            "Readers, snapshots, file growth",
            "/api/v1/store",
            store=found,
            growth=_growth(found),
            cluster=_cluster(found),
        )


def _page_links(asked: Asked, found: dict[str, Any], folder: str | None) -> dict[str, str | None]:
    """The addresses of the neighbouring pages. None: there is no such page."""
    given = [(field, value) for field, value in asked.model_dump().items() if field != "page" and value]

    def address(number: int) -> str:
        return f"/?{urlencode([*given, ('page', number)], doseq=True)}"

    shown = found["page"]
    return {
        "before": address(shown - 1) if shown > 1 else None,
        "after": address(shown + 1) if shown < found["pages"] else None,
        "conditions": filters_of(asked, folder),
    }


def filters_of(asked: Asked, folder: str | None = None) -> str:
    """The command that finds the same modules, but for the part of the name. `folder` None: the default registry."""
    arguments = asked.arguments()
    where = ("--path", folder) if folder is not None else ()
    return shlex.join(["dspy-registry", "find" if arguments else "list", *filters.command(arguments), *where])


def chart_of(module: dict[str, Any]) -> charts.DurationChart | None:
    """The durations of the newest version that was called, by size; else those of all versions."""
    limits = {limit["size"]: limit["limit_ms"] for limit in module.get("limits", ())}
    for used in module["usage_by_version"]:
        if used["version"] == module["version"] and used["standing"]:
            return charts.duration_chart(
                [
                    (size, *(kept[key] for key in _STANDING), limits[size])
                    for size, kept in used["standing"].items()  # in the order of SIZES
                    if size in limits
                ]
            )
    usage = module["usage"] or {"durations": {}}
    return charts.duration_chart(
        [
            (size, seen["calls"], seen["p50"], seen["p90"], seen["p99"], 0, 0)
            for size, seen in sorted(usage["durations"].items(), key=lambda each: SIZES.index(each[0]))
        ]
    )


_STANDING: Final = ("completed", "p50", "p90", "p99", "longest")


def _cluster(store: dict[str, Any]) -> dict[str, Any] | None:
    """The daemon's section of that name. None: it follows no cluster, or does not answer."""
    section = store["daemon"]["sections"].get("cluster") if store["daemon"] else None
    return section if isinstance(section, dict) and "hosts" in section else None


def _growth(store: dict[str, Any]) -> dict[str, Any] | None:
    """The chart of the data file's size. None: it was looked at once only."""
    samples = store["growth"]
    if len(samples) < 2:
        return None
    sizes = [sample["data_bytes"] for sample in samples]
    return {
        "points": charts.line(sizes, _GROWTH_WIDTH, _GROWTH_HEIGHT),
        "width": _GROWTH_WIDTH,
        "height": _GROWTH_HEIGHT,
        "largest": max(sizes),
        "since": samples[0]["at"] * 1000,
        "until": samples[-1]["at"] * 1000,
        "grown": sizes[-1] - sizes[0],
    }


def _login(router: APIRouter, token: str, environment: Environment) -> None:
    def form(target: str, status: int, wrong: bool) -> HTMLResponse:
        text = environment.get_template("login.html").render(title="Log in", target=target, wrong=wrong)
        return HTMLResponse(text, status)

    @router.get(access.LOGIN)
    def show(request: Request) -> HTMLResponse:
        return form(_local(request.query_params.get("next", "/")), 200, False)

    @router.post(access.LOGIN)
    async def log_in(request: Request) -> Response:
        given = await _form_fields(request)
        target = _local(given.get("next", "/"))
        if not access.is_token(given.get("token", ""), token):
            return form(target, 403, True)
        answer = RedirectResponse(target, 303)
        answer.set_cookie(access.COOKIE, access.session(token), httponly=True, samesite="strict", path="/")
        return answer


async def _form_fields(request: Request) -> dict[str, str]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_LOGIN:
            return {}
    return {key: values[0] for key, values in parse_qs(body.decode("utf-8", "replace")).items()}


def _local(target: str) -> str:
    """The same if it is a path of this site, else the first page: nobody is led elsewhere."""
    is_local = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_local else "/"
