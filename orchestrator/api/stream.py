"""`GET runs/{id}/stream`: what happens to a run, as server-sent events.

Owns the cursor of a stream and what is told after it. Every event's id is the cursor of all that
was told up to and with it, so a browser that reconnects with `Last-Event-ID`, to this replica or to
another, misses nothing and is told nothing twice. Each look reads the database; wake-ups only make
it come sooner.

Events: `run` (RunSummary, when it changed), `steps` (list of MetricPoint, new ones of the canonical
history: later attempts tell a replayed step again), `attempts` and `incidents` (whole lists, when
they changed), `log` (list of LogLine), `end` (the run is over; close the stream).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter
from sqlalchemy import Connection

from orchestrator.api import views
from orchestrator.api.auth import service_of, signed_in
from orchestrator.api.errors import Refused, problem_responses
from orchestrator.api.history_schemas import LogLine, MetricPoint
from orchestrator.api.logs import log_line
from orchestrator.api.runs import read
from orchestrator.api.schemas import AttemptView, IncidentView, RunSummary
from orchestrator.api.series import metric_point
from orchestrator.service import Service
from orchestrator.state import TERMINAL_RUNS
from orchestrator.store import history, log_rows
from orchestrator.store import views as rows
from orchestrator.store.log_rows import Lines
from orchestrator.store.wishes import find
from orchestrator.wakes import run_topic

LOOK_SECONDS = 2.0  # a look without a wake-up, which is also the stream's heartbeat
LEAST_SECONDS = 0.1  # between two looks, however often something happens
BATCH = 500
_CURSOR = re.compile(r"a(\d{1,9})\.s(\d{1,10})\.l(\d{1,18})")

_POINTS = TypeAdapter(list[MetricPoint])
_LINES = TypeAdapter(list[LogLine])
_ATTEMPTS = TypeAdapter(tuple[AttemptView, ...])
_INCIDENTS = TypeAdapter(tuple[IncidentView, ...])


@dataclass(frozen=True)
class Cursor:
    """The newest step told, by which attempt, and the newest log line's id."""

    attempt: int = 0
    step: int = 0
    line: int = 0

    def __str__(self) -> str:
        return f"a{self.attempt}.s{self.step}.l{self.line}"


def read_cursor(text: str) -> Cursor:
    """Raises `ValueError` for what is no cursor."""
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return Cursor(*(int(part) for part in found.groups()))


@dataclass(frozen=True)
class Look:
    """What one read of the database saw after `begin`, up to `cursor`.

    `more` when a batch was full; `held_back` when there are lines that can not be told yet.
    """

    begin: Cursor
    cursor: Cursor
    run: RunSummary
    attempts: tuple[AttemptView, ...]
    incidents: tuple[IncidentView, ...]
    points: list[MetricPoint]
    lines: list[LogLine]
    more: bool
    held_back: bool


def look(connection: Connection, service: Service, run_id: str, after: Cursor | None) -> Look:
    """What there is after the cursor; None begins at the newest step and line."""
    run = find(connection, run_id)
    parts = history.segments(connection, run.id, run.branch)
    begin = _newest(connection, run, parts) if after is None else after
    points: list[MetricPoint] = []
    for part in parts:
        if part.attempt < begin.attempt:
            continue
        low = begin.step if part.attempt == begin.attempt else 0
        found = history.points(connection, run.id, (part,), low, limit=BATCH - len(points))
        points.extend(metric_point(row) for row in found)
    lines = [
        log_line(row) for row in log_rows.lines(connection, run.id, Lines(after=begin.line), BATCH)
    ]
    cursor = begin
    if points:
        cursor = replace(cursor, attempt=points[-1].attempt, step=points[-1].step)
    if lines:
        cursor = replace(cursor, line=lines[-1].id)
    return Look(
        begin=begin,
        cursor=cursor,
        run=views.run_summary(connection, service, run.id),
        attempts=views.attempts(connection, service, run.id),
        incidents=views.incidents(connection, service, run.id),
        points=points,
        lines=lines,
        more=len(points) >= BATCH or len(lines) >= BATCH,
        held_back=log_rows.held_back(connection, run.id, cursor.line),
    )


def _newest(connection: Connection, run: rows.AnyRow, parts: tuple[history.Segment, ...]) -> Cursor:
    last = history.newest(connection, run.id, parts)
    tail = log_rows.lines(connection, run.id, limit=1, newest=True)
    attempt, step = (last[0].attempt, last[0].step) if last else (0, 0)
    return Cursor(attempt, step, tail[0].id if tail else 0)


class Teller:
    """Turns looks into events; remembers what it told, so that only changes are told.

    Goodput changes with the clock alone, which is no news by itself.
    """

    def __init__(self) -> None:
        self._told: dict[str, bytes] = {}

    def events(self, seen: Look) -> list[bytes]:
        found: list[bytes] = []
        cursor = seen.begin
        for name, body in (
            ("run", seen.run.model_dump_json(exclude={"goodput"}).encode()),
            ("attempts", _ATTEMPTS.dump_json(seen.attempts)),
            ("incidents", _INCIDENTS.dump_json(seen.incidents)),
        ):
            if self._told.get(name) != body:
                self._told[name] = body
                told = seen.run.model_dump_json().encode() if name == "run" else body
                found.append(event(name, told, cursor))
        if seen.points:
            cursor = replace(seen.cursor, line=seen.begin.line)
            found.append(event("steps", _POINTS.dump_json(seen.points), cursor))
        if seen.lines:
            found.append(event("log", _LINES.dump_json(seen.lines), seen.cursor))
        return found


def event(name: str, data: bytes, cursor: Cursor) -> bytes:
    return b"event: %s\nid: %s\ndata: %s\n\n" % (name.encode(), str(cursor).encode(), data)


async def _anybody() -> bool:
    return True


async def tell(
    service: Service,
    run_id: str,
    after: Cursor | None,
    stopping: asyncio.Event,
    welcome: Callable[[], Awaitable[bool]] = _anybody,
) -> AsyncIterator[bytes]:
    """Until the run is over, the service stops, or whoever listens is not `welcome` any more."""
    teller, cursor = Teller(), after
    topic = run_topic(run_id)
    yield b"retry: 1000\n\n"
    while not stopping.is_set():
        seen_count = service.wakes.count(topic)
        if not await welcome():
            return
        seen = await read(service, look, run_id, cursor)
        cursor = seen.cursor
        told = teller.events(seen)
        for one in told:
            yield one
        if seen.more:
            continue
        if seen.run.state in TERMINAL_RUNS and not seen.held_back:
            yield event("end", b"{}", cursor)
            return
        if not told:
            yield b": still here\n\n"
        await _pause(service, topic, seen_count, stopping)


async def _pause(service: Service, topic: str, seen: int, stopping: asyncio.Event) -> None:
    """Until something happens, at most one look's time; a stop ends it."""
    stop = asyncio.create_task(stopping.wait())
    wake = asyncio.create_task(service.wakes.wait(topic, seen, LOOK_SECONDS))
    try:
        await asyncio.wait((stop, wake), return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            await asyncio.wait((stop,), timeout=LEAST_SECONDS)
    finally:
        for task in (stop, wake):
            task.cancel()
        await asyncio.gather(stop, wake, return_exceptions=True)


router = APIRouter(prefix="/api/v1", tags=["runs"], dependencies=[Depends(signed_in)])


@router.get(
    "/runs/{run}/stream",
    response_class=StreamingResponse,
    responses={
        **problem_responses(401, 404, 422),
        200: {"description": "Server-sent events", "content": {"text/event-stream": {}}},
        204: {"description": "The run is over, and everything about it was told"},
    },
)
async def stream(
    request: Request,
    run: str,
    cursor: Annotated[str | None, Query(max_length=50)] = None,
    last_event_id: Annotated[str | None, Header(max_length=50)] = None,
) -> Response:
    """What happens to the run from now on, or after a cursor `a<attempt>.s<step>.l<log line id>`.

    The id of each event is such a cursor; `Last-Event-ID` goes before the parameter.
    """
    service = service_of(request)
    text = last_event_id or cursor
    try:
        after = None if text is None else read_cursor(text)
    except ValueError:
        raise Refused(
            422, "invalid-request", "This is no cursor of a stream.", "Begin without a cursor."
        ) from None
    seen = await read(service, look, run, after)
    left = seen.points or seen.lines or seen.held_back
    if last_event_id and seen.run.state in TERMINAL_RUNS and not left:
        return Response(status_code=204)  # so that a browser stops reconnecting
    stopping: asyncio.Event = request.app.state.stopping

    async def welcome() -> bool:
        """A token that was revoked or has expired ends what was opened with it too."""
        try:
            await signed_in(request)
        except Refused as refusal:
            return refusal.status != 401
        return True

    return StreamingResponse(
        tell(service, seen.run.id, after or seen.cursor, stopping, welcome),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )
