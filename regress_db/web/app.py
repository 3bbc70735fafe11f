"""The server: each page of the table as HTML, JSON and CSV, and the few things beside them. Read-only by default.

Made by `create_app`, run by `epwatch serve`. Handlers are plain functions, which the framework runs in threads: a slow
question holds up nobody else's. Next to read: `regress_db.web.routes`, the table; `regress_db.web.security`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import date
from typing import Any
from urllib.parse import parse_qs

import msgspec
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from harness.errors import EpwatchError
from regress_db.errors import HistoryError, NotFoundError
from regress_db.history import History
from regress_db.schema import NIGHTS
from regress_db.web import feeds, metrics, openapi, pages
from regress_db.web.assets import assets
from regress_db.web.links import Links, series_of
from regress_db.web.questions import QuestionError, read
from regress_db.web.routes import HOME, PAGES, Page, Site
from regress_db.web.rows import as_csv
from regress_db.web.security import Guarded, may_write
from regress_db.web.views.error import ErrorView
from regress_db.web.views.people import acknowledge
from regress_db.web.views.shared import Answer

_LARGEST_FORM_BYTES = 1 << 20
_JSON = "application/json"
_CSV = "text/csv; charset=utf-8"
_FORMS = ("json", "csv")
_COMPRESSED_FROM_BYTES = 2048


def create_app(history: History, *, token: str | None = None, hosts: Collection[str] = ()) -> ASGIApp:
    """The application over an open history.

    token: what a request has to carry to acknowledge a regression; None: nothing can be written. hosts: names it
    answers for; empty for any.
    """
    site = Site(history, token)
    routes = [
        Route("/", _page(site, HOME, "")),
        *(
            Route(_as_route(page.path) + (f".{form}" if form else ""), _page(site, page, form))
            for page in PAGES
            for form in (*_FORMS, "")
        ),
        Route("/triage", _acknowledge(site), methods=["POST"]),
        Route("/atom.xml", _text(lambda request: feeds.atom(history, str(request.base_url)), "application/atom+xml")),
        Route("/badge.svg", _text(lambda _: feeds.badge(history), "image/svg+xml")),
        Route("/metrics", _text(lambda _: metrics.exposition(history), metrics.CONTENT_TYPE)),
        Route("/openapi.json", _text(lambda _: msgspec.json.encode(openapi.document()), _JSON)),
        Route("/healthz", _text(lambda _: _health(history), "text/plain")),
        Route("/static/{name}", _static),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={EpwatchError: _refused, HTTPException: _refused, Exception: _failed},
    )
    return Guarded(GZipMiddleware(app, minimum_size=_COMPRESSED_FROM_BYTES, compresslevel=4), hosts)


def _as_route(path: str) -> str:
    """OpenAPI's path as the framework's: an id may have any character in it."""
    return path.replace("}", ":path}")


def _page(site: Site, page: Page, form: str) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        given = [*request.path_params.items(), *request.query_params.multi_items()]
        view = page.ask(site, read(page.parameters, given))
        return _answered(request, view, page.title(view), form)

    return answer


def _answered(request: Request, view: Answer, title: str, form: str, status: int = 200) -> Response:
    if form == "json":
        return _sent(msgspec.json.encode(view), _JSON, status)
    if form == "csv":
        return _sent(as_csv(view), _CSV, status)
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    links = Links("../" * (path.count("/") - 1), path.strip("/"), request.url.query)
    return _sent(pages.page(view, links, title=title), "text/html; charset=utf-8", status)


def _sent(content: str | bytes, media_type: str, status: int = 200) -> Response:
    return Response(content, status, {"Cache-Control": "no-cache"}, media_type)


def _text(make: Callable[[Request], str | bytes], media_type: str) -> Callable[[Request], Response]:
    return lambda request: _sent(make(request), media_type)


def _health(history: History) -> str:
    with history.read() as connection:
        connection.execute(select(NIGHTS.c.id).limit(1)).first()
    return "ok\n"


def _static(request: Request) -> Response:
    """A file of the page's own, out of the table of those there are."""
    found = assets().get(request.path_params["name"])
    if found is None:
        raise NotFoundError("the page has no such file")
    headers = {"ETag": found.tag, "Cache-Control": "max-age=3600"}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers=headers, media_type=found.media_type)


def _acknowledge(site: Site) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _LARGEST_FORM_BYTES:
                raise HTTPException(413, "the form is too large")
        return await run_in_threadpool(_acknowledged, site, request, body)

    return answer


def _acknowledged(site: Site, request: Request, body: bytes) -> Response:
    """Acknowledge what the form says, if it may."""
    if site.token is None:
        raise HTTPException(
            403, "this page takes no acknowledgements: start it with --allow-triage, or use epwatch ack"
        )
    try:
        fields = parse_qs(body.decode(), max_num_fields=1000, errors="strict")
    except ValueError:
        raise QuestionError("the form cannot be read: send it URL-encoded, in UTF-8") from None
    if not may_write(site.token, request.headers, _field(fields, "token")):
        raise HTTPException(403, "the token is not this server's, or the form came from another site")
    names = [series_of(text) for text in fields.get("s", [])]
    chosen = [name for name in names if name is not None]
    if not chosen or len(chosen) < len(names):
        raise QuestionError("say which series are acknowledged: s=case|phase|platform, once for each")
    until = _day(_field(fields, "until"))
    acknowledge(site.history, chosen, who=_field(fields, "who"), why=_field(fields, "why"), until=until)
    return RedirectResponse("triage", 303)


def _field(fields: dict[str, list[str]], name: str) -> str:
    return next(iter(fields.get(name, [])), "").strip()


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise QuestionError(f"{text[:40]!r} is no day: write 2026-11-30") from None


def _refused(request: Request, error: Exception) -> Response:
    """What is shown instead of a page: one sentence, in the form that was asked for."""
    if isinstance(error, HTTPException):
        status, sentence = error.status_code, _sentence(error)
    elif isinstance(error, NotFoundError):
        status, sentence = 404, str(error)
    else:
        status, sentence = (500 if isinstance(error, HistoryError) else 400), str(error)
    return _error(request, status, sentence)


def _sentence(error: HTTPException) -> str:
    if error.status_code == 404:
        return "there is no such page"
    if error.status_code == 405:
        return "this page is only read"
    return error.detail


def _failed(request: Request, error: Exception) -> Response:
    """A mistake of ours: the server's log has the trace, the page does not."""
    return _error(request, 500, f"this should not have happened: {type(error).__name__}; the server's log says more")


def _error(request: Request, status: int, sentence: str) -> Response:
    form = request.scope["path"].rpartition(".")[2]
    view = ErrorView(status=status, sentence=sentence)
    if form == "json":
        return _answered(request, view, "", form, status)
    if form in ("csv", "xml", "svg") or request.scope["path"] == "/metrics":
        return _sent(f"{sentence}\n", "text/plain", status)
    return _answered(request, view, str(status), "", status)
