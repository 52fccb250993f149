"""The routes of runs: submit, read, wish, delete.

Owns status codes and parameters alone: what is answered is made by `views`, what is written by
`store.wishes`, what is refused beforehand by `preflight`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from sqlalchemy import Connection

from orchestrator import preflight
from orchestrator.api import views
from orchestrator.api.auth import Checked, csrf_checked, service_of
from orchestrator.api.bodies import read_model
from orchestrator.api.errors import Refused, problem_responses
from orchestrator.api.schemas import (
    AttemptView,
    Chart,
    CheckpointView,
    EventPage,
    Facts,
    GoodputView,
    IncidentView,
    LogPage,
    Metrics,
    ResumeRequest,
    RevisionView,
    RunDetail,
    RunPage,
)
from orchestrator.service import Service
from orchestrator.state import Desired, RunState
from orchestrator.store import wishes
from orchestrator.store.audit import Actor
from orchestrator.wakes import LOOP, run_topic
from worker.protocol import JobSpec

P = ParamSpec("P")
T = TypeVar("T")

router = APIRouter(prefix="/api/v1", tags=["runs"], dependencies=[Depends(csrf_checked)])

SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"$ref": "#/components/schemas/JobSpec"}}
            for kind in ("application/json", "application/yaml")
        },
    }
}
RESUME_BODY: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ResumeRequest"}}},
    }
}
READS = problem_responses(401, 404, 422)
SUBMITS = problem_responses(400, 401, 403, 409, 413, 415, 422)
WISHES = problem_responses(401, 403, 404, 409, 422)
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
Limit = Annotated[int, Query(ge=1, le=200)]
BigLimit = Annotated[int, Query(ge=1, le=5000)]
Step = Annotated[int, Query(ge=1, le=1 << 31)]
LastStep = Annotated[int | None, Query(ge=1, le=1 << 31)]
RowId = Annotated[int | None, Query(ge=0, le=1 << 62)]


async def read(
    service: Service,
    view: Callable[Concatenate[Connection, Service, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Runs a view in a thread of its own, inside one read transaction."""

    def work() -> T:
        with service.read.begin() as connection:
            return view(connection, service, *args, **kwargs)

    try:
        return await to_thread.run_sync(work)
    except wishes.NoSuchRun:
        raise no_such_run() from None


def no_such_run() -> Refused:
    return Refused(
        404,
        "no-such-run",
        "There is no run with this id or name.",
        "List the runs: longhaul runs, or GET /api/v1/runs.",
    )


# ---- submit ------------------------------------------------------------------------------------


@router.post(
    "/runs",
    status_code=201,
    response_model=RunDetail,
    responses={**SUBMITS, 200: {"model": RunDetail, "description": "Made before with this key"}},
    openapi_extra=SPEC_BODY,
)
async def submit(
    request: Request, response: Response, session: Checked, key: Key = None
) -> RunDetail:
    """Makes a run, after everything about its spec was checked; a refusal leaves nothing behind.

    The same `Idempotency-Key` with the same spec answers the run that it made before, with 200.
    """
    service = service_of(request)
    job = await read_model(request, JobSpec)
    run_id = await _known(service, job, key)
    made = run_id is None
    if run_id is None:
        await _check(request, service, job)
        now, who = service.clock.now(), session.actor
        submitted = await _wish(
            service, lambda connection: wishes.submit(connection, now, job, key, who)
        )
        run_id, made = submitted.run_id, submitted.made
        service.wakes.notify(LOOP, run_topic(run_id))
    response.status_code = 201 if made else 200
    response.headers["Location"] = f"/api/v1/runs/{run_id}"
    return await read(service, views.run_detail, run_id)


@router.post("/runs:preflight", response_model=Facts, responses=SUBMITS, openapi_extra=SPEC_BODY)
async def check(request: Request, session: Checked) -> Facts:
    """What a run of this spec would be, after the same checks; makes nothing.

    A name that is taken is refused here too.
    """
    service = service_of(request)
    job = await read_model(request, JobSpec)
    await _known(service, job, None)
    await _check(request, service, job)
    return await read(service, views.facts, job)


async def _known(service: Service, job: JobSpec, key: str | None) -> str | None:
    def look(connection: Connection, service: Service) -> str | None:
        return wishes.known_submission(connection, job, key)

    try:
        return await read(service, look)
    except wishes.NotAccepted as refusal:
        raise _conflict(refusal) from None


async def _check(request: Request, service: Service, job: JobSpec) -> None:
    free: preflight.DiskFree = request.app.state.disk_free
    found = await to_thread.run_sync(preflight.problems, job, service.settings, free)
    if found:
        raise Refused(
            422,
            "preflight-failed",
            "The spec is well-formed, but this machine can not run it.",
            errors=found,
        )


# ---- read --------------------------------------------------------------------------------------


@router.get("/runs", response_model=RunPage, responses=problem_responses(401, 422))
async def list_runs(
    request: Request,
    state: Annotated[list[RunState] | None, Query()] = None,
    name: Annotated[
        str, Query(pattern="^[a-z0-9-]{0,40}$", description="Beginning of the name")
    ] = "",
    cursor: Annotated[str | None, Query(max_length=80)] = None,
    limit: Limit = 50,
) -> RunPage:
    """Newest first; `next_cursor` goes into `cursor` for the next page."""
    try:
        return await read(service_of(request), views.run_page, state or (), name, cursor, limit)
    except ValueError:
        raise Refused(
            422, "invalid-request", "The cursor is not one of this list.", "Begin without a cursor."
        ) from None


@router.get("/runs/{run}", response_model=RunDetail, responses=READS)
async def show(request: Request, run: str) -> RunDetail:
    """One run, by its id or its name."""
    return await read(service_of(request), views.run_detail, run)


@router.get("/runs/{run}/attempts", response_model=tuple[AttemptView, ...], responses=READS)
async def attempts(request: Request, run: str) -> tuple[AttemptView, ...]:
    return await read(service_of(request), views.attempts, run)


@router.get("/runs/{run}/checkpoints", response_model=tuple[CheckpointView, ...], responses=READS)
async def checkpoints(request: Request, run: str) -> tuple[CheckpointView, ...]:
    """Newest first."""
    return await read(service_of(request), views.checkpoints, run)


@router.get("/runs/{run}/incidents", response_model=tuple[IncidentView, ...], responses=READS)
async def incidents(request: Request, run: str) -> tuple[IncidentView, ...]:
    """Newest first."""
    return await read(service_of(request), views.incidents, run)


@router.get("/runs/{run}/revisions", response_model=tuple[RevisionView, ...], responses=READS)
async def revisions(request: Request, run: str) -> tuple[RevisionView, ...]:
    return await read(service_of(request), views.revisions, run)


@router.get("/runs/{run}/goodput", response_model=GoodputView, responses=READS)
async def goodput(request: Request, run: str) -> GoodputView:
    return await read(service_of(request), views.goodput, run)


@router.get("/runs/{run}/events", response_model=EventPage, responses=READS)
async def events(request: Request, run: str, cursor: RowId = None, limit: Limit = 100) -> EventPage:
    """Oldest first."""
    return await read(service_of(request), views.events, run, cursor or 0, limit)


@router.get("/runs/{run}/metrics", response_model=Metrics, responses=READS)
async def metrics(
    request: Request,
    run: str,
    from_step: Step = 1,
    to_step: LastStep = None,
    limit: BigLimit = 1000,
) -> Metrics:
    """The canonical history, each step once; both bounds are included.

    `next_step` goes into `from_step` for the next page.
    """
    return await read(service_of(request), views.metrics, run, from_step, to_step, limit)


@router.get("/runs/{run}/chart", response_model=Chart, responses=READS)
async def chart(
    request: Request,
    run: str,
    points: Annotated[int, Query(ge=1, le=5000)] = 600,
    from_step: Step = 1,
    to_step: LastStep = None,
) -> Chart:
    """The canonical history in about `points` columns with lowest, highest and mean."""
    return await read(service_of(request), views.chart, run, points, from_step, to_step)


@router.get("/runs/{run}/logs", response_model=LogPage, responses=READS)
async def logs(
    request: Request,
    run: str,
    after: Annotated[int, Query(ge=0, le=1 << 62)] = 0,
    tail: Annotated[int | None, Query(ge=1, le=5000)] = None,
    attempt: Annotated[int | None, Query(ge=1, le=1 << 31)] = None,
    limit: BigLimit = 1000,
) -> LogPage:
    """The lines after the one with id `after`, or the last `tail` lines; oldest first."""
    service = service_of(request)
    if tail is not None:
        return await read(service, views.logs, run, None, attempt, tail)
    return await read(service, views.logs, run, after, attempt, limit)


# ---- wishes ------------------------------------------------------------------------------------


@router.post(
    "/runs/{run}/pause",
    status_code=202,
    response_model=RunDetail,
    responses={**WISHES, 200: {"model": RunDetail, "description": "So wished already"}},
)
async def pause(request: Request, response: Response, run: str, session: Checked) -> RunDetail:
    """The trainers save and leave; a later resume goes on from there."""
    return await _wished(request, response, run, Desired.PAUSE, session.actor)


@router.post(
    "/runs/{run}/cancel",
    status_code=202,
    response_model=RunDetail,
    responses={**WISHES, 200: {"model": RunDetail, "description": "So wished already"}},
)
async def cancel(request: Request, response: Response, run: str, session: Checked) -> RunDetail:
    """Ends the run for good; its checkpoints stay."""
    return await _wished(request, response, run, Desired.CANCEL, session.actor)


@router.post(
    "/runs/{run}/resume",
    status_code=202,
    response_model=RunDetail,
    responses={
        **problem_responses(400, 401, 403, 404, 409, 413, 415, 422),
        200: {"model": RunDetail, "description": "It runs already"},
    },
    openapi_extra=RESUME_BODY,
)
async def resume(request: Request, response: Response, run: str, session: Checked) -> RunDetail:
    """A paused or failed run goes on from its newest good checkpoint, with fresh budgets."""
    asked = await read_model(request, ResumeRequest, optional=True)
    return await _wished(request, response, run, Desired.RUN, session.actor, asked.reason)


@router.delete("/runs/{run}", status_code=204, response_model=None, responses=WISHES)
async def remove(request: Request, run: str, session: Checked) -> None:
    """Forgets a run that is over and holds no hosts; its files in the storage stay."""
    service = service_of(request)
    now, who = service.clock.now(), session.actor
    run_id = await _wish(service, lambda connection: wishes.remove(connection, now, run, who))
    service.wakes.notify(LOOP, run_topic(run_id))


async def _wished(
    request: Request,
    response: Response,
    run: str,
    desired: Desired,
    who: Actor,
    reason: str | None = None,
) -> RunDetail:
    service = service_of(request)
    now = service.clock.now()
    wished = await _wish(
        service, lambda connection: wishes.wish(connection, now, run, desired, who, reason)
    )
    if wished.changed:
        service.wakes.notify(LOOP, run_topic(wished.run_id))
    else:
        response.status_code = 200
    return await read(service, views.run_detail, wished.run_id)


async def _wish(service: Service, work: Callable[[Connection], T]) -> T:
    try:
        return await service.writer.run(work)
    except wishes.NoSuchRun:
        raise no_such_run() from None
    except wishes.NotAllowed as refusal:
        raise Refused(403, "not-your-run", str(refusal), "Ask its owner or an admin.") from None
    except wishes.NotAccepted as refusal:
        raise _conflict(refusal) from None


def _conflict(refusal: wishes.NotAccepted) -> Refused:
    return Refused(409, refusal.slug, refusal.detail, refusal.hint)
