"""Access control of the server: host name, origin and token checks, and isolating response headers."""

from __future__ import annotations

import hmac
import ipaddress
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "fashion_ntm_token"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Return whether a bind address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware.

    Host: on loopback only names of this machine are accepted, against DNS rebinding (a foreign name that resolves to
    127.0.0.1). Origin: a POST that a browser sends for another site is refused. Token: given once in the address
    (``?token=``), then kept in a cookie that scripts cannot read; programs may send ``Authorization: Bearer``.
    """

    def __init__(self, app: ASGIApp, token: str | None = None, hosts: tuple[str, ...] = ()):
        self.app, self.token, self.hosts = app, token, {h.lower() for h in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refusal(scope, headers)
        given = self._given(scope, headers)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    out[name] = value
                if "cache-control" not in out:
                    out["Cache-Control"] = "no-store"
                if self.token and refused is None and given == "address":
                    out.append("Set-Cookie", f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        await (refused or self.app)(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            asked = urlsplit(f"//{host}")
            name, _ = (asked.hostname or "").lower(), asked.port  # a non-numeric port raises ValueError
            sender = None if origin is None else urlsplit(origin).netloc.lower()
        except ValueError:
            return JSONResponse({"error": "the Host or Origin header is malformed"}, 400)
        if self.hosts and name not in self.hosts and not is_loopback(name):
            return JSONResponse({"error": f"this server does not answer to the name {name!r}"}, 421)
        if scope["method"] not in ("GET", "HEAD") and sender is not None and sender != host.lower():
            return JSONResponse({"error": "a request from another site is refused"}, 403)
        if self.token and self._given(scope, headers) is None:
            message = "this server needs its token: open the address that it printed when it started"
            return JSONResponse({"error": message}, 401)
        return None

    def _given(self, scope: Scope, headers: Headers) -> str | None:
        """Return the source of the correct token: "header", "cookie" or "address"; None if absent."""
        if self.token is None:
            return None
        found = {
            "header": headers.get("authorization", "").removeprefix("Bearer "),
            "cookie": _cookie(headers.get("cookie", "")),
            "address": parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0],
        }
        right = [place for place, value in found.items() if hmac.compare_digest(value.encode(), self.token.encode())]
        return right[0] if right else None


def _cookie(header: str) -> str:
    with suppress(CookieError):
        if morsel := SimpleCookie(header).get(COOKIE):
            return morsel.value
    return ""
