"""What every answer and every request passes: security headers, the Host header, proxies.

Plain ASGI, so that streams pass through unbuffered.
"""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any, cast

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from orchestrator.api.errors import REQUEST_ID, Refused, answer
from orchestrator.settings import Settings, is_loopback

BODY = 1 << 20
AGENT_BODY = 16 << 20
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    # Under "no-referrer" a form of our own page comes with an Origin of "null", and signing out is
    # refused. Nobody else is told anything by this one either.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class SecurityHeaders:
    """Adds `HEADERS` to each answer that has not set its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class RequestId:
    """Gives each answer the `X-Request-ID` that the caller sent, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("X-Request-ID", "")
        name = given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        scope[REQUEST_ID] = name

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = name
            await send(message)

        await self.app(scope, receive, with_id)


LONGEST_NUMBER = 20  # digits: Python reads no number of more than some thousands


class BodyLimit:
    """Stops reading a body where it is too long: agents' reports may be larger than the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = _limit_of(scope)
        told = Headers(scope=scope).get("Content-Length", "0")
        if told.isdecimal() and (len(told) > LONGEST_NUMBER or int(told) > limit):
            refused = Refused(413, "body-too-large", _too_large(limit), "Send less at once.")
            await answer(Request(scope), refused)(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                # The one kind of exception that whoever reads the body passes on.
                raise HTTPException(413, _too_large(limit))
            return message

        await self.app(scope, counted, send)


def _limit_of(scope: Scope) -> int:
    path = scope["path"]
    if path.startswith("/api/v1/bundles/"):
        settings: Settings = scope["app"].state.service.settings
        return settings.max_bundle_bytes
    return AGENT_BODY if path.startswith("/api/v1/agents/") else BODY


def _too_large(limit: int) -> str:
    return f"The body is larger than {limit // 1024} KiB."


class KnownHost:
    """Refuses requests for any name that is not this service's.

    A page of a foreign site can have its own name resolve to 127.0.0.1 and then speak to this
    service as its own origin; its requests still carry the foreign name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        name = _name(request.headers.get("Host", "")).lower()
        settings: Settings = scope["app"].state.service.settings
        if is_loopback(name) or name in settings.host_names:
            await self.app(scope, receive, send)
            return
        refused = Refused(
            421,
            "wrong-host",
            "This service does not answer to this name.",
            "Use http://127.0.0.1 with its port; other names are set with public_url or"
            " allowed_hosts.",
        )
        await answer(request, refused)(scope, receive, send)


class Proxied:
    """Takes the caller's address and scheme from the headers of proxies that are trusted.

    From anybody else such headers are a lie, and are not looked at.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._trusting: tuple[tuple[str, ...], ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        proxies = scope["app"].state.service.settings.trusted_proxies
        await self._by(proxies)(scope, receive, send)

    def _by(self, proxies: tuple[str, ...]) -> ASGIApp:
        if not proxies:
            return self.app
        if self._trusting is None or self._trusting[0] != proxies:
            wrapped = ProxyHeadersMiddleware(cast(Any, self.app), list(proxies))
            self._trusting = proxies, cast(ASGIApp, wrapped)
        return self._trusting[1]


def _name(host: str) -> str:
    """The name of a Host header, without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


class Drain:
    """Ends calls that only wait for news once the service stops, so that it stops at once.

    What such a call brought is committed before it waits, and its sender repeats it elsewhere or
    later; the spool's numbers keep a repetition from counting twice.
    """

    def __init__(self, app: ASGIApp, paths: frozenset[str]) -> None:
        self.app = app
        self.paths = paths
        self._calls: set[asyncio.Timeout] = set()
        self._watch: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self.paths:
            await self.app(scope, receive, send)
            return
        limit = self._limit(scope["app"].state.stopping)
        try:
            async with limit:
                await self.app(scope, receive, send)
            return
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            self._calls.discard(limit)
        refused = Refused(
            503,
            "stopping",
            "The service is stopping.",
            "Repeat the call when it is back.",
            headers={"Retry-After": "1"},
        )
        await answer(Request(scope), refused)(scope, receive, send)

    def _limit(self, stopping: asyncio.Event) -> asyncio.Timeout:
        """Of one call; all of them are over with the service. A task for each would cost more than
        the call."""
        if stopping.is_set():
            return asyncio.timeout(0)
        if self._watch is None:
            self._watch = asyncio.create_task(self._end_calls(stopping))
        limit = asyncio.timeout(None)
        self._calls.add(limit)
        return limit

    async def _end_calls(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        now = asyncio.get_running_loop().time()
        for limit in self._calls:
            limit.reschedule(now)
