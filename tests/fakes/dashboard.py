"""A `Reader` over made-up runs, and one real web server that shows them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from orchestrator.api.auth import Session, signed_in
from orchestrator.api.fleet_schemas import FleetGroup, FleetPage
from orchestrator.api.guards import SecurityHeaders
from orchestrator.api.schemas import (
    AttemptView,
    Chart,
    ChartColumn,
    CheckpointView,
    EvalPoint,
    EvidenceView,
    Facts,
    GoodputPart,
    GoodputView,
    IncidentView,
    LogLine,
    OrphansView,
    OrphanView,
    Progress,
    RunDetail,
    RunSummary,
)
from orchestrator.dashboard import router as dashboard
from orchestrator.dashboard.views_reader import reader
from orchestrator.presets import PRESETS
from orchestrator.roles import Role
from orchestrator.state import AttemptState, CheckpointState, Desired, GroupState, RunState, Verdict
from orchestrator.store.audit import Actor

NOW = datetime(2026, 11, 20, 13, 2, 11, tzinfo=UTC)
CSRF = "csrf-of-the-test"


def ago(**parts: float) -> datetime:
    return NOW - timedelta(**parts)


def make_run(name: str = "demo-1m", **changes: object) -> RunDetail:
    spec = PRESETS["demo-1m"].spec
    fields: dict[str, object] = {
        "id": f"r{abs(hash(name)) % 10**9}" if not name.isalnum() else f"r{name}",
        "name": name,
        "state": RunState.RUNNING,
        "desired": Desired.RUN,
        "reason": None,
        "needs_person": False,
        "state_since": ago(seconds=42),
        "created_at": ago(minutes=2),
        "finished_at": None,
        "attempt": 1,
        "attempt_state": AttemptState.RUNNING,
        "attempts": 1,
        "owner": "admin",
        "revision": 1,
        "branch": 1,
        "parameters": 1_049_728,
        "hosts": 1,
        "provider": "local",
        "progress": Progress(
            step=120,
            steps=200,
            loss=2.4251,
            learning_rate=2.1e-3,
            tokens_per_second=8_412.0,
            step_seconds=0.2434,
            eta_seconds=19.5,
            eval_loss=2.611,
            updated_at=NOW,
        ),
        "goodput": 0.833,
        "spec": spec,
        "facts": Facts(
            parameters=1_049_728,
            flops_per_token=7_000_000,
            tokens_per_step=2048,
            total_tokens=409_600,
            checkpoint_bytes=12_596_736,
            checkpoints=8,
            storage_bytes=100_773_888,
            memory_per_device_bytes=61_000_000,
            memory_arithmetic="weights, moments, gradients and activations",
            devices=1,
            tokens_per_second=None,
            speed_source=None,
            hours=None,
            hours_arithmetic="not known",
            price_per_hour=None,
            currency="USD",
            cost=None,
            cost_arithmetic="no price",
        ),
        "waits_for": None,
        "newest_checkpoint": None,
        "groups": (),
    }
    return RunDetail.model_validate(fields | changes)


def make_attempt(number: int = 1, **changes: object) -> AttemptView:
    fields: dict[str, object] = {
        "number": number,
        "state": AttemptState.RUNNING,
        "revision": 1,
        "branch": 1,
        "group": "lh-x1-demo-1m-g1",
        "processes": 1,
        "created_at": ago(seconds=115),
        "first_step_at": ago(seconds=108),
        "ended_at": None,
        "resume_checkpoint": None,
        "resumed_from_step": 0,
        "last_step": 120,
        "accepted_step": 100,
        "verdict": None,
        "summary": None,
        "evidence": (),
        "replayed_steps": 0,
        "replayed_until": None,
        "replayed_bit_identical": None,
        "first_difference_step": None,
        "recovery_seconds": None,
    }
    return AttemptView.model_validate(fields | changes)


def make_incident(attempt: int = 1, **changes: object) -> IncidentView:
    fields: dict[str, object] = {
        "number": attempt,
        "attempt": attempt,
        "verdict": Verdict.CRASHED,
        "opened_at": ago(seconds=62),
        "closed_at": ago(seconds=58),
        "closed_by_attempt": attempt + 1,
        "needs_person": False,
        "headline": f"A trainer of attempt {attempt} crashed",
        "seen": (
            EvidenceView(
                at=ago(seconds=62), source="agent of host 0", text="trainer 4711 ended by SIGKILL"
            ),
            EvidenceView(at=ago(seconds=62), source="trainer, rank 0", text="last step: 90"),
        ),
        "concluded": "A signal that no trainer can catch. Nobody had asked it to stop.",
        "done": (
            "Started attempt 2 on the same hosts.",
            "Resumed from step 75; 15 steps trained again.",
        ),
        "left": (),
        "command": None,
        "how_to_tell": "A later attempt completes a new step.",
        "lost_seconds": 7.6,
        "lost_steps": 15,
    }
    return IncidentView.model_validate(fields | changes)


def make_checkpoint(step: int, attempt: int = 1, **changes: object) -> CheckpointView:
    fields: dict[str, object] = {
        "id": f"a{attempt}-s{step}",
        "attempt": attempt,
        "branch": 1,
        "step": step,
        "uri": f"/data/runs/x/a{attempt}/checkpoints/{step}",
        "state": CheckpointState.VERIFIED,
        "bytes": 12_640_112,
        "files": 19,
        "state_digest": "0" * 64,
        "stall_seconds": 0.02,
        "write_seconds": 0.41,
        "written_at": ago(seconds=110 - step / 2),
        "accepted_at": NOW,
        "verified_at": NOW,
        "reason": None,
    }
    return CheckpointView.model_validate(fields | changes)


def loss_at(step: int) -> float:
    wobble = 0.05 * math.sin(step * 12.9898) * math.cos(step * 4.1414)
    return 1.9 + 3.7 * math.exp(-step / 28) + 0.6 * math.exp(-step / 160) + wobble


SECONDS = {
    "productive": 100.0,
    "starting": 9.0,
    "replayed": 3.7,
    "stopping": 2.3,
    "eval": 3.0,
    "checkpoint": 1.5,
    "recovering": 0.5,
}
GOODPUT = GoodputView(
    wall_seconds=120.0,
    goodput=0.833,
    parts=tuple(
        GoodputPart(category=name, seconds=seconds, share=seconds / 120)
        for name, seconds in SECONDS.items()
    ),
)


@dataclass
class Story:
    """All that is known of one run."""

    run: RunDetail
    attempts: list[AttemptView] = field(default_factory=list[AttemptView])
    incidents: list[IncidentView] = field(default_factory=list[IncidentView])
    checkpoints: list[CheckpointView] = field(default_factory=list[CheckpointView])
    logs: list[LogLine] = field(default_factory=list[LogLine])
    goodput: GoodputView = GOODPUT


def make_group(name: str = "lh-x1-demo-1m-g1", hosts: int = 1, **changes: object) -> FleetGroup:
    fields: dict[str, object] = {
        "name": name,
        "run": "r1",
        "run_name": "demo-1m",
        "generation": 1,
        "provider": "local",
        "zone": None,
        "devices": 1,
        "state": GroupState.READY,
        "detail": None,
        "created_at": ago(minutes=2),
        "ready_at": ago(minutes=2),
        "released_at": None,
        "price_per_hour": None,
        "cost": None,
    }
    host: dict[str, object] = {
        "address": "127.0.0.1",
        "hostname": "here",
        "protocol": 2,
        "registered_at": ago(minutes=2),
        "last_seen_at": NOW,
        "running_attempt": 1,
        "notice": None,
        "notice_at": None,
    }
    made = [host | {"index": index} for index in range(hosts)]
    return FleetGroup.model_validate(fields | {"hosts": made} | changes)


def make_orphan(name: str = "lh-x1-stint-g2", **changes: object) -> OrphanView:
    fields: dict[str, object] = {
        "provider": "cloud",
        "name": name,
        "hosts": 4,
        "price_per_hour": 8.64,
        "cost": 0.72,
        "why": "its run is over",
        "first_seen_at": ago(minutes=5),
        "last_seen_at": NOW,
        "reap_asked_at": None,
        "gone_at": None,
        "sure": True,
    }
    return OrphanView.model_validate(fields | changes)


class FakeReader:
    """Shows `stories`; tests change them between two looks."""

    def __init__(self, *stories: Story) -> None:
        self.stories = list(stories)
        self.clock = NOW
        self.groups: tuple[FleetGroup, ...] = (make_group(),)
        self.found: tuple[OrphanView, ...] = ()
        self.only_listed = False

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
        prices = [one.price_per_hour or 0.0 for one in self.found if one.sure]
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

    def logs(self, run_id: str, lines: int) -> tuple[LogLine, ...]:
        return tuple(self.story(run_id).logs[-lines:])


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
    )


def recovered(name: str = "demo-1m", step: int = 120) -> Story:
    """A run that was killed once and went on by itself."""
    checkpoints = [make_checkpoint(s, 1 if s <= 75 else 2) for s in (100, 75, 50, 25)]
    run = make_run(name, attempt=2, attempts=2, newest_checkpoint=checkpoints[0])
    run = run.model_copy(
        update={"progress": run.progress.model_copy(update={"step": step, "loss": loss_at(step)})}
    )
    first = make_attempt(
        1,
        state=AttemptState.ENDED,
        verdict=Verdict.CRASHED,
        summary="rank 0 ended by SIGKILL",
        ended_at=ago(seconds=62),
        last_step=90,
        accepted_step=75,
    )
    second = make_attempt(
        2,
        created_at=ago(seconds=61.6),
        first_step_at=ago(seconds=58),
        resume_checkpoint="a1-s75",
        resumed_from_step=75,
        last_step=step,
        replayed_steps=15,
        replayed_until=ago(seconds=53),
        replayed_bit_identical=True,
        recovery_seconds=4.0,
    )
    logs = [
        LogLine(
            id=n, attempt=2, rank=0, at=ago(seconds=120 - n), line=f"step {n} loss {loss_at(n):.4f}"
        )
        for n in range(80, step + 1)
    ]
    return Story(run, [first, second], [make_incident()], checkpoints, logs)


def waiting(name: str = "plover-1m") -> Story:
    """A run that Longhaul gave up on until a person decides."""
    run = make_run(
        name,
        state=RunState.PAUSED,
        needs_person=True,
        reason="6 attempts in a row crashed before they made progress",
        state_since=ago(minutes=9),
        created_at=ago(minutes=14),
        attempt=1,
        attempt_state=AttemptState.ENDED,
    )
    ended = make_attempt(
        1,
        state=AttemptState.ENDED,
        verdict=Verdict.OUT_OF_MEMORY,
        summary="the kernel killed rank 0 for memory",
        created_at=ago(minutes=13.6),
        first_step_at=ago(minutes=13.4),
        ended_at=ago(minutes=9),
    )
    incident = make_incident(
        1,
        verdict=Verdict.OUT_OF_MEMORY,
        headline="Attempt 1 ran out of memory",
        opened_at=ago(minutes=9),
        closed_at=None,
        closed_by_attempt=None,
        needs_person=True,
        asked_person=True,
        left=("Make the model or the microbatch smaller.",),
        command=f"longhaul resume {name}",
        lost_seconds=540.0,
        done=("Paused the run and released its hosts.",),
    )
    return Story(run, [ended], [incident], [make_checkpoint(50)])


def finished(name: str = "whimbrel-1m", state: RunState = RunState.SUCCEEDED) -> Story:
    story = recovered(name, 200)
    story.run = story.run.model_copy(
        update={
            "state": state,
            "created_at": ago(hours=3),
            "finished_at": ago(hours=2, minutes=58),
            "state_since": ago(hours=2, minutes=58),
            "attempt_state": AttemptState.ENDED,
        }
    )
    shift = timedelta(hours=2, minutes=58)
    story.attempts = [
        one.model_copy(
            update={
                key: at - shift
                for key in ("created_at", "first_step_at", "ended_at")
                if (at := getattr(one, key)) is not None
            }
        )
        for one in story.attempts
    ]
    last = story.attempts[-1]
    story.attempts[-1] = last.model_copy(
        update={
            "state": AttemptState.ENDED,
            "verdict": Verdict.COMPLETED,
            "ended_at": story.run.finished_at,
        }
    )
    story.incidents = [
        one.model_copy(update={"opened_at": one.opened_at - shift, "closed_at": NOW - shift})
        for one in story.incidents
    ]
    return story


@dataclass
class Served:
    """What the pages of the test server did: the wishes that arrived, and the stream's wake-ups."""

    reader: FakeReader
    posts: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    streams: bool = True
    down: bool = False
    version: int = 0

    def touch(self) -> None:
        """Tells every open stream that something is new."""
        self.version += 1


def make_app(served: Served) -> FastAPI:
    """The dashboard over `served.reader`, with the API's stream and wishes at their simplest."""
    app = FastAPI()
    app.add_middleware(SecurityHeaders)
    app.dependency_overrides[signed_in] = lambda: Session(Actor("ada", Role.ADMIN, None), CSRF)
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
        if action == "pause":
            problem = {"detail": "The run is already pausing.", "hint": "Wait for it to save."}
            return JSONResponse(problem, 409, media_type="application/problem+json")
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
