"""The agent's side of the talk with the control plane.

Owns what is told when, and what follows from the answers: events go in order and count once, a
refused one is set aside instead of being sent for ever. How one call is made is `calling.py`'s.
Knows neither processes nor files but the spool. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel

from worker.calling import MOST_WAIT_SECONDS, Answer, Calls, Refused, backoff
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
WAIT_SECONDS = 20.0
JOINED_SECONDS = 10.0  # at this pace or a slower one telemetry travels with the heartbeats
log = logging.getLogger("longhaul.agent")


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
        self._running = running
        self._port = port
        self._obey = obey
        self._standby = standby
        self._known_commands = ""
        self._pace, self._patience = COALESCE_SECONDS, WAIT_SECONDS
        self._answer_at: datetime | None = None  # by the control plane's clock
        self._batch_events = BATCH_EVENTS
        self._some = asyncio.Event()
        self._urgent = asyncio.Event()
        self._acked = asyncio.Event()
        self._calls = Calls(control_url, secret)

    async def close(self) -> None:
        await self._calls.close()

    @property
    def silent_seconds(self) -> float:
        """How long the control plane has not answered."""
        return self._calls.silent_seconds

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
        answer = await self._calls.insist(
            "register", lambda: body.model_dump_json().encode(), Registered
        )
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
            answer = await self._calls.insist("report", self._heartbeat(), ReportAnswer)
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
        return await self._calls.insist("checkpoints", lambda: body, CheckpointAccepted)

    async def download(self, call: str, asked: Mapping[str, str], into: Path) -> None:
        """Fetches a file, trying until the control plane answers; raises an `UplinkError`."""
        await self._calls.download(call, asked, into)

    async def ask(self, call: str, body: BaseModel, kind: type[Answer]) -> Answer:
        """Asks until there is an answer; raises an `UplinkError` for a refusal."""
        sent = body.model_dump_json().encode()
        return await self._calls.insist(call, lambda: sent, kind, patient=False)

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
            answer = await self._calls.insist(
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
