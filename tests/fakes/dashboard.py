"""A `Reader` over made-up runs, and one real web server that shows them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from orchestrator.api.access_schemas import AuditEntry, AuditPage, TokenView
from orchestrator.api.auth import Session, signed_in
from orchestrator.api.fleet_schemas import FleetGroup, FleetPage
from orchestrator.api.guards import SecurityHeaders
from orchestrator.api.history_schemas import Chart, ChartColumn, EvalPoint, LogLine
from orchestrator.api.inventory_schemas import InventoryHostView, InventoryView
from orchestrator.api.schemas import (
    AttemptView,
    BranchView,
    CheckpointView,
    GoodputView,
    IncidentView,
    OrphansView,
    OrphanView,
    RevisionView,
    RunDetail,
    RunSummary,
    TrainerView,
)
from orchestrator.dashboard import router as dashboard
from orchestrator.dashboard.reader import ALL_LINES, AuditAsked, LogAsked
from orchestrator.dashboard.views_reader import reader
from orchestrator.roles import Role
from orchestrator.store.audit import Actor
from tests.fakes.stories import NOW, Story, loss_at, make_group

CSRF = "csrf-of-the-test"


class FakeReader:
    """Shows `stories`; tests change them between two looks."""

    def __init__(self, *stories: Story) -> None:
        self.stories = list(stories)
        self.clock = NOW
        self.groups: tuple[FleetGroup, ...] = (make_group(),)
        self.found: tuple[OrphanView, ...] = ()
        self.only_listed = False
        self.ssh: tuple[InventoryHostView, ...] | None = None
        self.kept_tokens: tuple[TokenView, ...] = ()
        self.deeds: tuple[AuditEntry, ...] = ()
        self.spent_a_week: float | None = None

    def now(self) -> datetime:
        return self.clock

    def runs(self) -> tuple[RunSummary, ...]:
        return tuple(story.run for story in self.stories)

    def run(self, name: str) -> RunDetail | None:
        return next((s.run for s in self.stories if name in (s.run.name, s.run.id)), None)

    def story(self, run_id: str) -> Story:
        return next(story for story in self.stories if story.run.id == run_id)

    def attempts(self, run_id: str) -> tuple[AttemptView, ...]:
        return tuple(self.story(run_id).attempts)

    def checkpoints(self, run_id: str) -> tuple[CheckpointView, ...]:
        return tuple(self.story(run_id).checkpoints)

    def incidents(self, run_id: str) -> tuple[IncidentView, ...]:
        return tuple(self.story(run_id).incidents)

    def hosts(self) -> FleetPage:
        return FleetPage(items=self.groups, currency="USD")

    def orphans(self) -> OrphansView:
        prices = [
            one.price_per_hour or 0.0 for one in self.found if one.sure and one.gone_at is None
        ]
        return OrphansView(
            items=self.found,
            cost_per_hour=sum(prices),
            currency="USD",
            only_listed=self.only_listed,
        )

    def chart(self, run_id: str, columns: int, from_step: int = 1) -> Chart:
        last = self.story(run_id).run.progress.step
        width = max(1, -(-(last - from_step + 1) // columns))
        spans = [
            (first, min(first + width - 1, last)) for first in range(from_step, last + 1, width)
        ]
        evals = tuple(
            EvalPoint(step=step, attempt=1, loss=loss_at(step) + 0.15)
            for step in range(50, last + 1, 50)
            if step >= from_step
        )
        made = tuple(_column(first, through) for first, through in spans)
        return Chart(width=width, first_step=from_step, last_step=last, columns=made, evals=evals)

    def losses(self, run_id: str, points: int) -> tuple[float, ...]:
        columns = self.chart(run_id, points).columns
        return tuple(c.loss_mean for c in columns if c.loss_mean is not None)

    def goodput(self, run_id: str) -> GoodputView:
        return self.story(run_id).goodput

    def logs(self, run_id: str, lines: int, asked: LogAsked = ALL_LINES) -> tuple[LogLine, ...]:
        found = [
            line
            for line in self.story(run_id).logs
            if (asked.text or "").casefold() in line.line.casefold()
            and asked.rank in (None, line.rank)
        ]
        return tuple(found[-lines:])

    def revisions(self, run_id: str) -> tuple[RevisionView, ...]:
        return tuple(self.story(run_id).revisions)

    def branches(self, run_id: str) -> tuple[BranchView, ...]:
        return tuple(self.story(run_id).branches)

    def trainers(self, run_id: str) -> tuple[TrainerView, ...]:
        return tuple(self.story(run_id).trainers)

    def spent(self, since: datetime, until: datetime) -> float | None:
        return self.spent_a_week

    def inventory(self) -> InventoryView | None:
        return None if self.ssh is None else InventoryView(items=self.ssh)

    def tokens(self) -> tuple[TokenView, ...]:
        return self.kept_tokens

    def audit(self, asked: AuditAsked) -> AuditPage:
        found = [
            deed
            for deed in self.deeds
            if asked.actor in (None, deed.actor) and asked.action in (None, deed.action)
        ]
        return AuditPage(items=tuple(found), next_cursor=None)


def _column(first: int, last: int) -> ChartColumn:
    values = [loss_at(step) for step in range(first, last + 1)]
    return ChartColumn(
        first=first,
        last=last,
        attempt=1,
        loss_min=min(values),
        loss_max=max(values),
        loss_mean=sum(values) / len(values),
        loss_last=values[-1],
        grad_norm_max=1.2,
        grad_norm_mean=0.4 + 2 * math.exp(-last / 20) + 0.05 * math.sin(last),
        learning_rate=3e-3 * min(1, last / 20) * (0.55 + 0.45 * math.cos(math.pi * last / 220)),
        tokens_per_second=8400 + 300 * math.sin(last * 1.7),
        step_seconds=0.24 + 0.01 * math.sin(last * 1.7),
        data_wait=0.004 + 0.001 * math.sin(last * 0.9),
    )


@dataclass
class Served:
    """What the pages of the test server did: the wishes that arrived, and the stream's wake-ups."""

    reader: FakeReader
    posts: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    streams: bool = True
    down: bool = False
    version: int = 0
    role: Role = Role.ADMIN
    bodies: list[dict[str, object]] = field(default_factory=list[dict[str, object]])

    def touch(self) -> None:
        """Tells every open stream that something is new."""
        self.version += 1


def make_app(served: Served) -> FastAPI:
    """The dashboard over `served.reader`, with the API's stream and wishes at their simplest."""
    app = FastAPI()
    app.add_middleware(SecurityHeaders)
    app.dependency_overrides[signed_in] = lambda: Session(Actor("ada", served.role, None), CSRF)
    app.dependency_overrides[reader] = lambda: served.reader

    @app.middleware("http")
    async def outage(request: Request, call_next):  # type: ignore[no-untyped-def]
        if served.down:
            return Response(status_code=503)
        return await call_next(request)

    @app.get("/api/v1/runs/{run_id}/stream")
    async def stream(run_id: str) -> Response:
        if not served.streams:
            return Response(status_code=404)
        return StreamingResponse(_events(served), media_type="text/event-stream")

    @app.post("/api/v1/runs/{run_id}/{action}")
    async def wish(request: Request, run_id: str, action: str) -> Response:
        served.posts.append((action, request.headers.get("X-CSRF-Token")))
        served.bodies.append(await request.json())
        if action == "pause":
            problem = {"detail": "The run is already pausing.", "hint": "Wait for it to save."}
            return JSONResponse(problem, 409, media_type="application/problem+json")
        return JSONResponse({}, 202)

    @app.post("/api/v1/runs/{run_id}/checkpoints/{checkpoint}/quarantine")
    async def quarantine(request: Request, run_id: str, checkpoint: str) -> Response:
        served.posts.append(("quarantine", request.headers.get("X-CSRF-Token")))
        served.bodies.append(await request.json())
        return JSONResponse({}, 202)

    dashboard.mount(app)
    return app


async def _events(served: Served) -> AsyncIterator[str]:
    seen = served.version
    yield ": hello\n\n"
    while not served.down and served.streams:
        if served.version != seen:
            seen = served.version
            yield "event: steps\ndata: []\n\n"
        await asyncio.sleep(0.05)
