"""The agent's side of the talk with the control plane.

Owns the calls, their retries and what each answer means: a control plane that is away is waited
for without end, an answer that this agent is superseded ends it, a refused event is set aside
instead of being sent for ever. Knows neither processes nor files but the spool. Must not import
JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from worker.protocol import (
    PROTOCOL_VERSION,
    AgentReport,
    CheckpointAccepted,
    CheckpointOffer,
    Command,
    HostFacts,
    Register,
    Registered,
    ReportAnswer,
)
from worker.spool import Spool, SpooledEvent

BATCH_EVENTS = 200
BATCH_BYTES = 512 << 10
COALESCE_SECONDS = 0.05
WAIT_SECONDS, MOST_WAIT_SECONDS = 20.0, 55.0
JOINED_SECONDS = 10.0  # at this pace or a slower one telemetry travels with the heartbeats
MAX_BACKOFF_SECONDS = 2.0
LOOK_SECONDS = 0.1
MOVED_SECONDS = 1.0
REFUSED_BACKOFF_SECONDS = 15.0
CALL_TIMEOUT = httpx.Timeout(10.0, connect=3.0)
POLL_TIMEOUT = httpx.Timeout(MOST_WAIT_SECONDS + 10.0, connect=3.0)
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


def pace_of(next_report_seconds: float) -> float:
    """Seconds that events which nobody waits for may gather, as the control plane asks for it."""
    return min(max(next_report_seconds, COALESCE_SECONDS), MOST_WAIT_SECONDS)


def patience_of(next_report_seconds: float) -> float:
    """Seconds that a report without events may be held: a large fleet asks for longer ones."""
    return min(max(next_report_seconds, WAIT_SECONDS), MOST_WAIT_SECONDS)


class Uplink:
    """One agent process's two conversations, and its offers of checkpoints.

    `running`, `port` and `standby` (where the spare meets the others, and whether it stands ready)
    are asked at each report; `obey` is handed the commands of each answer.
    """

    def __init__(
        self,
        group: str,
        host: int,
        secret: str,
        instance: str,
        spool: Spool,
        control_url: Callable[[], str],
        running: Callable[[], int | None],
        port: Callable[[], int],
        obey: Callable[[tuple[Command, ...]], None],
        standby: Callable[[], tuple[str | None, bool]] = lambda: (None, False),
    ) -> None:
        self._group, self._host, self._instance = group, host, instance
        self._spool = spool
        self._control_url = control_url
        self._running = running
        self._port = port
        self._obey = obey
        self._standby = standby
        self._known_commands = ""
        self._pace, self._patience = COALESCE_SECONDS, WAIT_SECONDS
        self._answered_at = time.monotonic()
        self._answer_at: datetime | None = None  # by the control plane's clock
        self._batch_events = BATCH_EVENTS
        self._some = asyncio.Event()
        self._urgent = asyncio.Event()
        self._acked = asyncio.Event()
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {secret}"}, trust_env=False, verify=_trusted()
        )

    async def close(self) -> None:
        await self._client.aclose()

    @property
    def silent_seconds(self) -> float:
        """How long the control plane has not answered."""
        return time.monotonic() - self._answered_at

    def ring(self, urgent: bool) -> None:
        """There is something new in the spool."""
        self._some.set()
        if urgent:
            self._urgent.set()

    async def register(self, facts: HostFacts) -> None:
        """Presents this process, for as long as it takes; then obeys and drops what is stored."""
        body = Register(
            protocol=PROTOCOL_VERSION,
            group=self._group,
            host=self._host,
            instance=self._instance,
            facts=facts,
        )
        answer = await self._insist("register", lambda: body.model_dump_json().encode(), Registered)
        self._store_ack(answer.acked_seq)
        self._answer_at = answer.at
        self._obey(answer.commands)

    # ---- the two conversations -------------------------------------------------------------------

    async def send_events(self) -> None:
        """Delivers the spool in order, for ever."""
        last = 0
        while True:
            if self._spool.acked >= last:  # else the batch before was not all that there was
                await self._until_some()
                last = self._spool.last_seq
            batch = self._spool.batch(self._batch_events, BATCH_BYTES)
            if batch:
                await self._deliver(batch)
            else:
                last = 0

    async def poll(self) -> None:
        """Heartbeats that are held back until there is something to obey, for ever."""
        quick = 0
        while True:
            before = asyncio.get_running_loop().time()
            answer = await self._insist("report", self._heartbeat(), ReportAnswer)
            news = answer.commands_digest != self._known_commands
            self._take(answer)
            held = asyncio.get_running_loop().time() - before >= 1.0
            quick = 0 if held or news else quick + 1
            if quick > 1:
                pause = max(answer.next_report_seconds, 0.05)
                await asyncio.sleep(min(pause, backoff(quick)))

    def _heartbeat(self) -> Callable[[], bytes]:
        """The first try brings the gathered telemetry, where that does not travel by itself.

        Later ones do not: an event that is refused must not hold up the heartbeat.
        """
        joined = self._pace >= JOINED_SECONDS
        tries = itertools.count()

        def body() -> bytes:
            first = joined and next(tries) == 0
            batch = self._spool.batch(self._batch_events, BATCH_BYTES) if first else ()
            return self._report(batch, self._patience)

        return body

    async def delivered(self, seq: int) -> None:
        """Waits until everything up to `seq` is stored."""
        while self._spool.acked < seq:
            self.ring(urgent=True)
            self._acked.clear()
            await self._acked.wait()

    async def offer(self, offer: CheckpointOffer) -> CheckpointAccepted:
        """Asks until the checkpoint counts; raises `Stale` when it never will."""
        body = offer.model_dump_json().encode()
        return await self._insist("checkpoints", lambda: body, CheckpointAccepted)

    async def ask(self, call: str, body: BaseModel, kind: type[Answer]) -> Answer:
        """Asks until there is an answer; raises an `UplinkError` for a refusal."""
        sent = body.model_dump_json().encode()
        return await self._insist(call, lambda: sent, kind, patient=False)

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

    async def _until_some(self) -> None:
        """Returns at once for what is urgent, else after giving others time to join."""
        if not self._spool.pending:
            self._some.clear()
            await self._some.wait()
        if not self._urgent.is_set():
            joined = self._pace >= JOINED_SECONDS
            patience = 2 * self._patience if joined else self._pace
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), patience)
        self._urgent.clear()

    async def _deliver(self, batch: list[SpooledEvent]) -> None:
        try:
            answer = await self._insist(
                "report", lambda: self._report(batch, 0.0), ReportAnswer, patient=False
            )
        except Refused as refusal:
            await self._isolate(batch, refusal)
            return
        self._batch_events = BATCH_EVENTS
        self._heed(answer)
        if answer.acked_seq < batch[0].seq:
            await asyncio.sleep(backoff(3))  # taken but not stored: do not send it again at once

    async def _isolate(self, batch: list[SpooledEvent], refusal: Refused) -> None:
        """Finds the one event that is not taken, and leaves it out of the delivery."""
        if len(batch) > 1:
            self._batch_events = max(1, len(batch) // 2)
            return
        log.error(
            "the control plane refuses event %d, which is left out: %s", batch[0].seq, refusal
        )
        self._spool.set_aside(batch[0])
        self._store_ack(batch[0].seq)
        await asyncio.sleep(backoff(2))

    def _report(self, batch: list[SpooledEvent] | tuple[()], wait_seconds: float) -> bytes:
        """The events' own bytes go over the wire as the spool holds them."""
        standby, ready = self._standby()
        report = AgentReport(
            group=self._group,
            host=self._host,
            instance=self._instance,
            running_attempt=self._running(),
            free_port=self._port(),
            wait_seconds=wait_seconds,
            known_commands=self._known_commands,
            answered_at=self._answer_at,
            standby=standby,
            standby_ready=ready,
        )
        head = report.model_dump_json(exclude={"events"}).encode().removesuffix(b"}")
        return head + b',"events":[' + b",".join(event.body for event in batch) + b"]}"

    def _take(self, answer: ReportAnswer) -> None:
        """Obeys too, which only heartbeats do: they come one after the other.

        The answer to a delivery may be overtaken by one with newer commands. Obeyed last, it would
        undo them until the next heartbeat, which is held for as long as nothing changes.
        """
        self._heed(answer)
        self._known_commands = answer.commands_digest
        self._obey(answer.commands)

    def _heed(self, answer: ReportAnswer) -> None:
        self._store_ack(answer.acked_seq)
        self._answer_at = answer.at
        self._pace = pace_of(answer.next_report_seconds)
        self._patience = patience_of(answer.next_report_seconds)

    def _store_ack(self, seq: int) -> None:
        self._spool.ack(seq)
        self._acked.set()

    # ---- one call --------------------------------------------------------------------------------

    async def _insist(
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
