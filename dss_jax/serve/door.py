"""What every request passes before the app, and every answer on its way out.

A request's host, token and type are looked at before its body is read; the body is read here,
within bounds of size and time. A page of another site cannot ask from a browser: what it may send
without the server's consent (CORS, which is given to nobody) is not JSON, and a name that it has
pointed at this machine (DNS rebinding) is not among the hosts.
"""

import asyncio
import hmac
import time
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dss_jax.serve.errors import ApiError
from dss_jax.serve.limits import ANY_HOST, ServeLimits
from dss_jax.serve.metrics import Meters

GUARDED = ("/v1/", "/metrics")
"""Paths that want the token; pages, their files and probes do not."""

PROBES = ("/healthz", "/readyz")
"""Paths that are asked by address, whatever the server's names are, and tell nothing."""

GONE = 499
"""nginx's status for a client that has hung up; it is in the metrics alone."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Of answers that have none of their own."""


class Door:
    """ASGI middleware.

    Args:
      token: "" for none. Compared in constant time.
      hosts: names that a client may call the server by, or `ANY_HOST`.
      routes: paths that are told apart in the metrics.
      stopping: whether connections are closed after their answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        hosts: Collection[str],
        limits: ServeLimits,
        meters: Meters,
        routes: Collection[str],
        stopping: Callable[[], bool],
    ) -> None:
        self._app, self._hosts, self._limits = app, hosts, limits
        self._token, self._meters, self._routes = token.encode(), meters, routes
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), GONE

        async def send_out(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self._stopping():
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._pass(scope, receive, send_out)
        except Exception:
            status = 500 if status == GONE else status  # Answered outside of this.
            raise
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._meters.request(route, status, time.perf_counter() - start)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check(scope["path"], headers)
            body = b""
            if scope["method"] == "POST":
                kind = headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind != "application/json":
                    text = f"the body must be sent as application/json, not {kind[:100]!r}"
                    raise ApiError(text, status=415, code="content_type")
                body = await self._body(headers, receive)
        except ApiError as refusal:
            await refusal.response()(scope, receive, send)
            return
        except ConnectionResetError:
            return
        given = False

        async def receive_whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_whole, send)

    def _check(self, path: str, headers: Headers) -> None:
        name = host_of(headers.get("host", ""))
        if not {ANY_HOST, name} & set(self._hosts) and path not in PROBES:
            raise ApiError(
                f"this server does not go by the name {name[:100]!r}; dss serve --allowed_hosts "
                "says by which it does",
                status=403,
                code="unknown_host",
            )
        if not self._token or not path.startswith(GUARDED):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(given.strip().encode(), self._token)
        if scheme.lower() != "bearer" or not known:
            raise ApiError(
                "the server wants its token: Authorization: Bearer TOKEN",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """Raises ApiError: too large, too slow. ConnectionResetError: the client has gone."""
        most, seconds = self._limits.max_body, self._limits.client_seconds
        too_large = ApiError(
            f"a body may have {most:,} bytes: send fewer inputs at once",
            status=413,
            code="too_large",
        )
        told = headers.get("content-length", "")
        if told.isdecimal() and int(told[:20]) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            text = f"the body did not come within {seconds} seconds"
            close = {"Connection": "close"}
            raise ApiError(text, status=408, code="too_slow", headers=close) from None
        return bytes(body)


def host_of(header: str) -> str:
    """The name in a Host header, without its port; "" for one that is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
