"""One call to the control plane: made until it is answered, and what each answer means.

Owns the connection, the tries, and the errors that agents know. A control plane that is away is
waited for without end. Knows no event and no command. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

MAX_BACKOFF_SECONDS = 2.0
LOOK_SECONDS = 0.1
MOVED_SECONDS = 1.0
REFUSED_BACKOFF_SECONDS = 15.0
MOST_WAIT_SECONDS = 55.0
CALL_TIMEOUT = httpx.Timeout(10.0, connect=3.0)
POLL_TIMEOUT = httpx.Timeout(MOST_WAIT_SECONDS + 10.0, connect=3.0)
# A held call sends nothing, and a cut link says nothing: without these such a call stays open until
# its own limit, and a host that is back in reach does not know it for a minute.
LINK_SECONDS = 15
SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LINK_SECONDS * 1000),
)
PROBLEM = "application/problem+json"
PROTOCOL_PROBLEM = "protocol-not-served"
log = logging.getLogger("longhaul.agent")
Answer = TypeVar("Answer", bound=BaseModel)


class UplinkError(Exception):
    """The control plane gave an answer that trying again does not change."""


class Superseded(UplinkError):
    """Another agent took this host over, or its group is no longer known."""


class ProtocolRefused(UplinkError):
    """The control plane does not speak this agent's protocol version."""


class Stale(UplinkError):
    """The attempt is no longer the current one (409 to a checkpoint)."""


class Refused(UplinkError):
    """The control plane can not take this request (a 4xx answer, or one without sense)."""


class Away(Exception):
    """The control plane did not answer, or answered that it can not now."""


def _trusted() -> ssl.SSLContext | bool:
    """The authorities of `SSL_CERT_FILE`; httpx would look there only together with proxies."""
    file = os.environ.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=file) if file else True


def backoff(failures: int, ceiling: float = MAX_BACKOFF_SECONDS) -> float:
    """Seconds to wait after so many failures in a row: doubling, with jitter."""
    return min(ceiling, 0.05 * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)  # noqa: S311


class Calls:
    """To the control plane that `control_url` names at each try; it may move meanwhile."""

    def __init__(self, control_url: Callable[[], str], secret: str) -> None:
        self._control_url = control_url
        self._answered_at = time.monotonic()
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {secret}"},
            trust_env=False,
            transport=httpx.AsyncHTTPTransport(
                verify=_trusted(), trust_env=False, socket_options=SOCKET_OPTIONS
            ),
        )

    async def close(self) -> None:
        await self._client.aclose()

    @property
    def silent_seconds(self) -> float:
        """How long the control plane has not answered."""
        return time.monotonic() - self._answered_at

    async def insist(
        self, call: str, body: Callable[[], bytes], kind: type[Answer], patient: bool = True
    ) -> Answer:
        """Calls until there is an answer. `patient`: also after a refusal, more slowly.

        The body is made anew for each try, since what it tells may have changed meanwhile.
        """
        failures = 0
        while True:
            try:
                return await self._call(call, body(), kind)
            except Away as away:
                wait = backoff(failures)
                if failures in (1, 10) or failures % 100 == 99:
                    log.warning("%s: %s; trying again", call, away)
            except Refused as refusal:
                if not patient:
                    raise
                log.error("%s refused: %s; trying again", call, refusal)
                wait = backoff(failures + 4, REFUSED_BACKOFF_SECONDS)
            failures += 1
            await self._pause(wait)

    async def download(self, call: str, asked: Mapping[str, str], into: Path) -> None:
        """Fetches a file, trying until the control plane answers; raises an `UplinkError`."""
        failures = 0
        while True:
            try:
                await self._download(call, asked, into)
            except Away as away:
                log.warning("%s: %s; trying again", call, away)
                await self._pause(backoff(failures))
                failures += 1
            else:
                return

    async def _download(self, call: str, asked: Mapping[str, str], into: Path) -> None:
        try:
            base = self._control_url()
            url = f"{base}/api/v1/agents/{call}"
            async with self._client.stream("GET", url, params=asked, timeout=CALL_TIMEOUT) as got:
                if got.status_code != 200:
                    await got.aread()
                    raise self._meaning(call, got, base)
                with into.open("wb") as file:
                    async for part in got.aiter_bytes():
                        await asyncio.to_thread(file.write, part)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise Away(f"no answer ({type(error).__name__}: {error})") from error

    async def _pause(self, seconds: float) -> None:
        """Waits so long, or until the control plane is announced elsewhere."""
        loop = asyncio.get_running_loop()
        until, base = loop.time() + seconds, self._base()
        while (left := until - loop.time()) > 0 and self._base() == base:
            await asyncio.sleep(min(left, LOOK_SECONDS))

    async def _call(self, call: str, body: bytes, kind: type[Answer]) -> Answer:
        """One request. Raises `Away` for what may pass, an `UplinkError` for what will not."""
        try:
            base = self._control_url()
            response = await self._post(base, call, body)
        except (httpx.RequestError, httpx.InvalidURL, OSError) as error:
            raise Away(f"no answer ({type(error).__name__}: {error})") from error
        if response.status_code == 200:
            self._answered_at = time.monotonic()
            try:
                return kind.model_validate_json(response.content)
            except ValidationError as error:
                raise Refused(f"an answer that makes no sense: {error}") from error
        raise self._meaning(call, response, base)

    async def _post(self, base: str, call: str, body: bytes) -> httpx.Response:
        """Gives up as soon as the control plane is said to be elsewhere: it may hang where it was.

        What is sent twice by that counts once.
        """
        post = self._client.post(
            f"{base}/api/v1/agents/{call}",
            content=body,
            headers={"Content-Type": "application/json"},
            timeout=POLL_TIMEOUT if call == "report" else CALL_TIMEOUT,
        )
        request, moved = asyncio.ensure_future(post), asyncio.ensure_future(self._moved(base))
        try:
            await asyncio.wait((request, moved), return_when=asyncio.FIRST_COMPLETED)
            if not request.done():
                raise Away("the control plane has moved")
            return request.result()
        finally:
            for task in (request, moved):
                task.cancel()
            await asyncio.gather(request, moved, return_exceptions=True)

    async def _moved(self, base: str) -> None:
        while self._base() in (None, base):
            await asyncio.sleep(MOVED_SECONDS)

    def _meaning(self, call: str, response: httpx.Response, base: str) -> Exception:
        """What a status other than 200 says to this agent."""
        status = response.status_code
        words = f"{status} {response.text[:500]}"
        if status >= 500 or status in (408, 425, 429):
            return Away(words)
        # Somebody else may answer at the port that a control plane has left: only a problem
        # document from where the control plane is now may end a healthy trainer.
        genuine = response.headers.get("content-type", "").startswith(PROBLEM)
        if not genuine or self._base() != base:
            return Away(f"not the control plane's answer: {words}")
        if status == 426 or PROTOCOL_PROBLEM in response.text:
            return ProtocolRefused(words)
        if status == 409 and call == "checkpoints":
            return Stale(words)
        if status in (401, 403, 409):
            return Superseded(words)
        return Refused(words)

    def _base(self) -> str | None:
        """Where the control plane is said to be; None while nobody says."""
        try:
            return self._control_url()
        except OSError:
            return None
