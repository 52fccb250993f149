"""Simulated agents in one process: heartbeats, steps and exits at the intervals of real ones.

Each keeps a held report open, as the real agent does, and sends its events in calls of their own.
Answers are parsed only when they hold commands, so that the machine is left to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from benchmarks.load import Target
from benchmarks.seeds import SECRET, Host
from worker.uplink import COALESCE_SECONDS, JOINED_SECONDS, WAIT_SECONDS, pace_of, patience_of

STEP_SECONDS = 2.0
START_SECONDS = 0.5
TELLS_AT_ONCE = 4000  # beside a held report of each agent: a process may open 20,000 files or so
NO_COMMANDS = b'"commands":[]'
NEXT = re.compile(rb'"next_report_seconds":([0-9.]+)')


@dataclass
class Count:
    """What all agents of this process did and saw."""

    reports: int = 0
    refused: int = 0
    failed: int = 0
    exits: int = 0
    restarts: list[float] = field(default_factory=list)  # s from an exit to the next start command
    telling: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(TELLS_AT_ONCE))


class Agent:
    """One host whose trainer steps steadily, until it is told to crash."""

    def __init__(self, host: Host, port: int, count: Count) -> None:
        self._host = host
        self._target = Target(port, "/api/v1/agents/report", f"Authorization: Bearer {SECRET}\r\n")
        self._count = count
        self._seq = self._step = 0
        self._attempt = 1
        self._running: int | None = 1
        self._known = ""
        self._pace, self._patience = COALESCE_SECONDS, WAIT_SECONDS
        self._exited_at = 0.0
        self.paced = False  # the server has said how often to report
        self._stepped_at = time.monotonic()

    async def live(self, begin_within: float) -> None:
        await asyncio.sleep(random.uniform(0, begin_within))  # noqa: S311
        await asyncio.gather(self._poll(), self._train())

    async def crash(self) -> None:
        """The trainer is killed: told at once, as real agents do."""
        if self._running is None:
            return
        self._running, self._exited_at = None, time.monotonic()
        self._count.exits += 1
        await self._tell(
            '{"kind":"trainer_exited","exit_code":null,"signal":9,"last_lines":["killed"]}'
        )

    async def _poll(self) -> None:
        reader = writer = None
        while True:
            try:
                if writer is None:
                    reader, writer = await self._connect()
                assert reader is not None
                joined = self._running is not None and self._pace >= JOINED_SECONDS
                sent = [self._envelope(event) for event in self._steps()] if joined else ()
                await self._take(await self._call(reader, writer, sent, self._patience))
            except (OSError, asyncio.IncompleteReadError):
                self._count.failed += 1
                writer = None
                await asyncio.sleep(random.uniform(0.5, 1.0))  # noqa: S311

    async def _train(self) -> None:
        while True:
            await asyncio.sleep(max(self._pace, STEP_SECONDS))
            if self._running is not None and self._pace < JOINED_SECONDS:
                await self._tell(*self._steps())

    def _steps(self) -> list[str]:
        """Those that the trainer made since the last ones."""
        now = time.monotonic()
        number = int((now - self._stepped_at) / STEP_SECONDS)
        self._stepped_at += number * STEP_SECONDS
        told: list[str] = []
        for _ in range(number):
            self._step += 1
            told.append(
                f'{{"kind":"step","step":{self._step},"loss":2.1234567,"grad_norm":1.01234567,'
                '"learning_rate":0.0003,"tokens":524288,"seconds":2.0123,"data_wait":0.001,'
                '"batch_hash":"0123456789abcdef"}'
            )
        return told

    async def _tell(self, *events: str) -> None:
        """A call on a connection of its own: a real agent's idle one is closed by then."""
        if not events:
            return
        sent = [self._envelope(event) for event in events]
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                async with self._count.telling:
                    reader, writer = await self._connect()
                    try:
                        body = await self._call(reader, writer, sent, 0.0)
                    finally:
                        writer.close()
                await self._take(body)
                return
            self._count.failed += 1
            await asyncio.sleep(random.uniform(0.5, 1.0))  # noqa: S311

    async def _take(self, body: bytes) -> None:
        if found := NEXT.search(body):
            seconds = float(found[1])
            self._pace, self._patience = pace_of(seconds), patience_of(seconds)
            self.paced = True
        if NO_COMMANDS in body:
            self._known = ""
            return
        answer = json.loads(body)
        self._known = answer.get("commands_digest", "")
        for command in answer.get("commands", ()):
            if command["kind"] == "start" and command["spec"]["attempt"] > self._attempt:
                await self._start(command["spec"]["attempt"])

    async def _start(self, attempt: int) -> None:
        self._count.restarts.append(time.monotonic() - self._exited_at)
        self._attempt = self._running = attempt
        await self._tell('{"kind":"trainer_started","pid":1}')
        await asyncio.sleep(START_SECONDS)
        self._stepped_at = time.monotonic() - STEP_SECONDS
        await self._tell(*self._steps())

    def _envelope(self, event: str) -> str:
        self._seq += 1
        return (
            f'{{"seq":{self._seq},"attempt":{self._attempt},"rank":0,'
            f'"at":"{datetime.now(UTC).isoformat()}","mono":1.0,"event":{event}}}'
        )

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._target.port, limit=1 << 20)

    async def _call(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        events: list[str] | tuple[()],
        wait_seconds: float,
    ) -> bytes:
        running = "null" if self._running is None else str(self._running)
        payload = (
            f'{{"group":"{self._host.group}","host":0,"instance":"{self._host.instance}",'
            f'"events":[{",".join(events)}],"running_attempt":{running},"free_port":5000,'
            f'"wait_seconds":{wait_seconds},"known_commands":"{self._known}"}}'
        ).encode()
        writer.write(self._target.head(len(payload)) + payload)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
        body = await reader.readexactly(length)
        self._count.reports += 1
        if head[9:12] != b"200":
            self._count.refused += 1
            await asyncio.sleep(1.0)
        return body
