"""The OpenAPI document of the page's JSON, made of the table of pages and of the views' structs. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from regress_db.web.questions import Parameter
from regress_db.web.routes import HOME, PAGES, Page
from regress_db.web.views.error import ErrorView
from regress_db.web.views.shared import VERSION

_REF = "#/components/schemas/{name}"
_FORMS = {"": "text/html", ".json": "application/json", ".csv": "text/csv"}
_OTHERS = {
    "/atom.xml": ("An Atom feed: one entry for each regression of the newest nights.", "application/atom+xml"),
    "/badge.svg": ("A badge of the newest judged night.", "image/svg+xml"),
    "/metrics": ("The newest judged night for Prometheus.", "text/plain"),
    "/openapi.json": ("This document.", "application/json"),
    "/healthz": ("Whether the server and its history answer.", "text/plain"),
}


def document() -> dict[str, Any]:
    """The document."""
    answers = [page.answer for page in PAGES]
    schemas, components = msgspec.json.schema_components([*answers, ErrorView], ref_template=_REF)
    of_answer = dict(zip(answers, schemas, strict=False))
    paths: dict[str, Any] = {}
    for page in PAGES:
        for suffix, media_type in _FORMS.items():
            schema = of_answer[page.answer] if suffix == ".json" else {"type": "string"}
            paths[page.path + suffix] = {"get": _operation(page, page.path + suffix, media_type, schema)}
    at_home = Page("/", HOME.summary, HOME.answer, HOME.ask, HOME.title, HOME.parameters[1:])
    paths["/"] = {"get": _operation(at_home, "/", "text/html", {"type": "string"})}
    for path, (summary, media_type) in _OTHERS.items():
        schema = {"type": "object"} if media_type == "application/json" else {"type": "string"}
        answer = {"description": summary, "content": {media_type: {"schema": schema}}}
        paths[path] = {"get": {"summary": summary, "responses": {"200": answer, "404": _refusal(media_type)}}}
    paths["/triage"]["post"] = _acknowledge()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "epwatch",
            "version": str(VERSION),
            "description": "What the page shows, as JSON. Every answer has `version` and `kind`; times are UTC.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(page: Page, path: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": page.summary,
        "operationId": path.strip("/").replace("/", "_").replace(".", "_").replace("{", "").replace("}", "") or "home",
        "parameters": [_parameter(one) for one in page.parameters],
        "responses": {
            "200": {"description": page.summary, "content": {media_type: {"schema": schema}}},
            "400": _refusal(media_type),
            "404": _refusal(media_type),
        },
    }


def _parameter(one: Parameter) -> dict[str, Any]:
    return {
        "name": one.name,
        "in": one.where,
        "required": one.where == "path",
        "description": one.words,
        "schema": {**one.schema, "minLength": 1} if one.where == "path" else one.schema,
    }


def _refusal(media_type: str) -> dict[str, Any]:
    described = "What was wrong and what to do, in one sentence."
    if media_type == "application/json":
        return {"description": described, "content": {media_type: {"schema": {"$ref": _REF.format(name="ErrorView")}}}}
    kind = "text/html" if media_type == "text/html" else "text/plain"
    return {"description": described, "content": {kind: {"schema": {"type": "string"}}}}


def _acknowledge() -> dict[str, Any]:
    """`POST /triage`."""
    text = {"type": "string"}
    fields = {
        "s": {"type": "array", "items": text, "description": "Series, as `case|phase|platform`."},
        "who": text,
        "why": text,
        "until": {"type": "string", "description": "The last day (UTC) it holds, `2026-11-30`; without: until fixed."},
        "token": {"type": "string", "description": "Or as `Authorization: Bearer`."},
    }
    body = {"type": "object", "properties": fields, "required": ["s", "who", "why"]}
    return {
        "summary": "Acknowledge regressions; only where the server was started with --allow-triage.",
        "operationId": "acknowledge",
        "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": body}}},
        "responses": {
            "303": {"description": "Done; the triage page shows it."},
            **{code: _refusal("text/html") for code in ("400", "403", "404", "413")},
        },
    }
