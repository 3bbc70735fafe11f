"""What keeps the page safe: strict headers on every answer, hosts it answers for, and who may write.

Pure but for `Guarded`, which wraps the server's application. Used by `regress_db.web.app`.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer. Plots set their styles by script, which `style-src 'self'` allows."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Whether a server bound to this host can be reached from this machine alone."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guarded:
    """The application behind its headers. hosts: names it answers for, so that no other site's name can be pointed at
    it by a browser's owner unknowing; empty for any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        app = self._app
        if self._hosts and host_name(scope) not in self._hosts:
            app = PlainTextResponse(
                "this server does not answer for that host name: start it with --allow-host NAME", status_code=400
            )
        await app(scope, receive, with_headers)


def host_name(scope: Scope) -> str:
    """The host that a request is for, without its port."""
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def may_write(token: str, headers: Mapping[str, str], field: str) -> bool:
    """Whether a request carries the token and comes from no other site's page.

    field: the token of the form, where there is none as `Authorization: Bearer`. Compared in constant time.
    """
    given = headers.get("authorization", "").removeprefix("Bearer ") or field
    origin = headers.get("origin")
    from_here = origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    return hmac.compare_digest(given.encode(), token.encode()) and from_here
