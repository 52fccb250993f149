"""Tells the person on call, by a webhook, of each incident that needs one.

Owns the form of the messages, their signature and their tries. Only the leader runs it, beside the
loop and never in its way. The webhook's address may be a secret itself (Slack's is): neither it
nor the words of its answers get into logs or rows.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import quote

import httpx
import structlog
from anyio import to_thread
from sqlalchemy import Connection

from orchestrator.api import happenings
from orchestrator.api.happenings import clean
from orchestrator.api.schemas import IncidentView
from orchestrator.instance import CannotStart
from orchestrator.service import Service
from orchestrator.settings import Settings, leads_to_loopback
from orchestrator.store import pages
from orchestrator.store.pages import Page
from orchestrator.store.wishes import find

LOOK_SECONDS = 2.0
SEND_SECONDS = 15.0
AT_ONCE = 8
SLACK_CHARACTERS = 3000

log = structlog.get_logger(__name__)


class CannotPage(CannotStart):
    """The settings of the webhook can not be used; the message says why."""


@dataclass(frozen=True)
class Webhook:
    """Where pages go, and what signs them."""

    url: str = field(repr=False)
    secret: bytes | None = field(repr=False)
    slack: bool


def webhook(settings: Settings) -> Webhook | None:
    """None where no webhook is set; raises `CannotPage`."""
    if settings.webhook_url is None:
        return None
    secret = None if settings.webhook_secret is None else settings.webhook_secret.get_secret_value()
    if settings.webhook_secret_file is not None:
        try:
            secret = settings.webhook_secret_file.read_text().strip()
        except OSError as error:
            raise CannotPage(
                f"The setting 'webhook_secret_file' can not be used: {error.strerror}."
            ) from error
        if not secret:
            raise CannotPage("The file of the setting 'webhook_secret_file' is empty.")
    url = settings.webhook_url.get_secret_value()
    key = secret.encode() if secret else None
    return Webhook(url, key, settings.webhook_format == "slack")


@dataclass(frozen=True)
class Message:
    """What a page says, whatever its form."""

    run_id: str
    run_name: str
    incident: IncidentView
    installation: str
    run_url: str

    @property
    def why(self) -> str:
        """The story of the stop as `longhaul why` tells it."""
        told = self.incident
        parts = [f"{told.headline}.", f"Concluded: {told.concluded}"]
        parts += [f"Seen: {seen.source}: {seen.text}" for seen in told.seen]
        parts += [f"Done by Longhaul: {line}" for line in told.done]
        parts += [f"Left to do: {line}" for line in told.left]
        parts.append(f"How to tell that it worked: {told.how_to_tell}")
        return clean_lines("\n".join(parts))


def clean_lines(text: str) -> str:
    return "\n".join(clean(line) for line in text.split("\n"))


def longhaul_body(message: Message, page: Page) -> dict[str, object]:
    told = message.incident
    return {
        "page": page.id,
        "installation": message.installation,
        "run": {"id": message.run_id, "name": message.run_name, "url": message.run_url},
        "incident": {
            "number": told.number,
            "attempt": told.attempt,
            "verdict": told.verdict,
            "opened_at": told.opened_at.isoformat(),
        },
        "headline": clean(told.headline),
        "why": message.why,
        "done": list(told.done),
        "left": list(told.left),
        "command": told.command,
        "runbook": told.runbook,
    }


def slack_body(message: Message) -> dict[str, object]:
    told = message.incident
    lines = [
        f"*{_escaped(message.run_name)} needs a person* ({_escaped(str(told.verdict))})",
        _escaped(message.why),
        f"`{_escaped(told.command)}`" if told.command else "",
        f"<{told.runbook}|Runbook> · <{message.run_url}|Open the run>",
    ]
    room = SLACK_CHARACTERS - sum(len(line) + 1 for line in (lines[0], *lines[2:]))
    if len(lines[1]) > room:
        lines[1] = lines[1][: room - 1].rpartition("\n")[0] + "\n…"
    return {"text": "\n".join(line for line in lines if line)}


def _escaped(text: str) -> str:
    """Slack's own three; everything else it takes as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    signed = timestamp.encode() + b"." + body
    return "sha256=" + hmac.new(secret, signed, hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class _Outcome:
    """`error` is None where it was taken; `wait` is what the receiver asked for."""

    error: str | None
    wait: timedelta = timedelta(0)


class Pager:
    """Sends what is due, some pages at once; each page by itself."""

    def __init__(
        self,
        service: Service,
        hook: Webhook,
        transport: httpx.AsyncBaseTransport | None = None,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._look_seconds = look_seconds
        self._service = service
        self._hook = hook
        loopback = leads_to_loopback(hook.url)
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(SEND_SECONDS, connect=5.0),
            follow_redirects=False,
            trust_env=not loopback,
            transport=transport,
        )

    async def run(self, stop: asyncio.Event, is_leader: Callable[[], bool]) -> None:
        """Until `stop`; only a leader sends. No failure ends it."""
        try:
            while not stop.is_set():
                try:
                    if is_leader():
                        await self.send_due()
                except Exception as error:  # noqa: BLE001 - the next look may find the database well
                    log.error("pages could not be looked at", reason=type(error).__name__)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._look_seconds)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def send_due(self) -> None:
        """One look: everything that is due now is tried once."""
        now = self._service.clock.now()
        found = await to_thread.run_sync(self._due)
        for page in found:
            if page.closed:
                await self._note(lambda c, page=page: pages.drop(c, page, now))
        await asyncio.gather(*(self._send(page) for page in found if not page.closed))

    def _due(self) -> list[Page]:
        with self._service.read.connect() as connection:
            return pages.due(connection, self._service.clock.now(), AT_ONCE)

    async def _note(self, work: Callable[[Connection], None]) -> None:
        await self._service.writer.run(work)

    async def _send(self, page: Page) -> None:
        message = await to_thread.run_sync(self._message, page)
        outcome = await self._post(message, page)
        now, counted = self._service.clock.now(), self._service.telemetry
        error = outcome.error
        if error is None:
            counted.pages_sent.inc()
            await self._note(lambda c: pages.sent(c, page, now))
            return
        again = page.next_try(now, outcome.wait)
        counted.pages_failed.inc()
        if again is None:
            counted.pages_given_up.inc()
        log.warning("a page was not taken", run=message.run_name, reason=error, again=str(again))
        await self._note(lambda c: pages.failed(c, page, now, error, again))

    def _message(self, page: Page) -> Message:
        service = self._service
        with service.read.begin() as connection:
            run = find(connection, page.run_id)
            told = happenings.incidents(connection, service, page.run_id)
        base = service.settings.public_url or service.settings.url
        return Message(
            run_id=run.id,
            run_name=run.name,
            incident=next(one for one in told if one.number == page.incident),
            installation=service.installation,
            run_url=f"{base}/runs/{quote(run.name)}",
        )

    async def _post(self, message: Message, page: Page) -> _Outcome:
        told = slack_body(message) if self._hook.slack else longhaul_body(message, page)
        body = json.dumps(told).encode()
        headers = self._headers(body, f"{message.installation}-{page.id}")
        try:
            async with (
                asyncio.timeout(SEND_SECONDS),
                self._http.stream("POST", self._hook.url, content=body, headers=headers) as answer,
            ):
                return _judged(answer)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return _Outcome(f"the webhook could not be reached ({type(error).__name__})")

    def _headers(self, body: bytes, key: str) -> Mapping[str, str]:
        timestamp = str(int(self._service.clock.now().timestamp()))
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": key,
            "X-Longhaul-Timestamp": timestamp,
        }
        if self._hook.secret is not None:
            headers["X-Longhaul-Signature"] = signature(self._hook.secret, timestamp, body)
        return headers


def _judged(answer: httpx.Response) -> _Outcome:
    if answer.is_success:
        return _Outcome(None)
    if answer.is_redirect:
        return _Outcome(f"the webhook answered {answer.status_code}: redirects are not followed")
    asked = answer.headers.get("Retry-After", "")
    wait = timedelta(seconds=int(asked)) if asked.isdigit() and len(asked) < 6 else timedelta(0)
    return _Outcome(f"the webhook answered {answer.status_code}", wait)
