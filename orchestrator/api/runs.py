"""The routes of runs: submit and read. What people want of them then is `api.wishes`'s.

Owns status codes and parameters alone: what is answered is made by `views`, what is written by
`store.wishes`, what is refused beforehand by `preflight`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import StringConstraints
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from orchestrator import bundles, preflight
from orchestrator.api import views
from orchestrator.api.auth import Checked, csrf_checked, service_of
from orchestrator.api.bodies import read_spec
from orchestrator.api.cursors import DatabaseTime, NotACursor
from orchestrator.api.errors import Refused, problem_responses
from orchestrator.api.history_schemas import Chart, EventPage, LogPage, Metrics
from orchestrator.api.logs import NotARegex, Search
from orchestrator.api.schemas import (
    AttemptPage,
    CheckpointPage,
    Facts,
    GoodputView,
    IncidentPage,
    RevisionPage,
    RunDetail,
    RunPage,
)
from orchestrator.service import Service
from orchestrator.state import RunState
from orchestrator.store import wishes
from orchestrator.store.audit import Actor
from orchestrator.store.log_rows import Lines
from orchestrator.store.naming import near_names
from orchestrator.store.views import Asked, Order
from orchestrator.wakes import LOOP, run_topic
from worker.protocol import AnySpec, CommandSpec, JobSpec

P = ParamSpec("P")
T = TypeVar("T")

router = APIRouter(prefix="/api/v1", tags=["runs"], dependencies=[Depends(csrf_checked)])

SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {
                "schema": {
                    "anyOf": [
                        {"$ref": f"#/components/schemas/{model.__name__}"}
                        for model in (JobSpec, CommandSpec)
                    ]
                }
            }
            for kind in ("application/json", "application/yaml")
        },
    }
}
READS = problem_responses(401, 404, 422)
SUBMITS = problem_responses(400, 401, 403, 409, 413, 415, 422)
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
Limit = Annotated[int, Query(ge=1, le=200)]
BigLimit = Annotated[int, Query(ge=1, le=5000)]
Step = Annotated[int, Query(ge=1, le=1 << 31)]
LastStep = Annotated[int | None, Query(ge=1, le=1 << 31)]
RowId = Annotated[int | None, Query(ge=0, le=1 << 62)]
Cursor = Annotated[str | None, Query(max_length=120)]
PLAIN = r"^[^\x00-\x1f]*$"  # PostgreSQL takes no NUL, not even to look for it
Kind = Annotated[str, StringConstraints(max_length=40, pattern=PLAIN)]
Since = Annotated[DatabaseTime | None, Query(description="Included")]
Until = Annotated[DatabaseTime | None, Query(description="Not included")]


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
    except wishes.NoSuchRun as error:
        raise await no_such_run(service, str(error)) from None
    except NotACursor:
        raise Refused(
            422, "invalid-request", "The cursor is not one of this list.", "Begin without a cursor."
        ) from None


async def no_such_run(service: Service, asked: str) -> Refused:
    """With the names that may have been meant."""

    def look() -> list[str]:
        with service.read.begin() as connection:
            return near_names(connection, asked)

    near = await to_thread.run_sync(look)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    return Refused(
        404,
        "no-such-run",
        "There is no run with this id or name.",
        f"{meant}List the runs: longhaul runs, or GET /api/v1/runs.",
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
    job = await read_spec(request)
    run_id = await _known(service, job, key, session.actor)
    made = run_id is None
    if run_id is None:
        await refuse_unfit(request, service, job)
        now, who = service.clock.now(), session.actor
        submitted = await write(
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
    job = await read_spec(request)
    await _known(service, job, None, session.actor)
    await refuse_unfit(request, service, job)
    return await read(service, views.facts, job)


async def _known(service: Service, job: AnySpec, key: str | None, who: Actor) -> str | None:
    def look(connection: Connection, service: Service) -> str | None:
        return wishes.known_submission(connection, job, key, who.name)

    try:
        return await read(service, look)
    except wishes.NotAccepted as refusal:
        raise conflict(refusal) from None


async def refuse_unfit(request: Request, service: Service, job: AnySpec) -> None:
    free: preflight.DiskFree = request.app.state.disk_free
    known, kept = frozenset(service.providers), await _named_bundle(service, job)
    found = await to_thread.run_sync(preflight.problems, job, service.settings, free, known, kept)
    if found:
        raise Refused(
            422,
            "preflight-failed",
            "The spec is well-formed, but this machine can not run it.",
            errors=found,
        )


async def _named_bundle(service: Service, job: AnySpec) -> frozenset[str]:
    """The bundle of the spec, if the service has it."""
    bundle = job.bundle if isinstance(job, CommandSpec) else None
    if bundle is None or await bundles.size_of(service, bundles.digest_of(bundle)) is None:
        return frozenset()
    return frozenset((bundle,))


# ---- read --------------------------------------------------------------------------------------


@router.get("/runs", response_model=RunPage, responses=problem_responses(401, 422))
async def list_runs(
    request: Request,
    state: Annotated[list[RunState] | None, Query(description="May be repeated")] = None,
    owner: Annotated[str | None, Query(min_length=1, max_length=80, pattern=PLAIN)] = None,
    name: Annotated[
        str, Query(pattern="^[a-z0-9-]{0,40}$", description="Beginning of the name")
    ] = "",
    created_after: Since = None,
    created_before: Until = None,
    order: Order = Order.NEWEST,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> RunPage:
    """Newest first; `next_cursor` goes into `cursor` for the next page of the same question."""
    asked = Asked(tuple(state or ()), owner, name, created_after, created_before, order)
    return await read(service_of(request), views.run_page, asked, cursor, limit)


@router.get("/runs/{run}", response_model=RunDetail, responses=READS)
async def show(request: Request, run: str) -> RunDetail:
    """One run, by its id or its name."""
    return await read(service_of(request), views.run_detail, run)


@router.get("/runs/{run}/attempts", response_model=AttemptPage, responses=READS)
async def attempts(
    request: Request, run: str, cursor: Cursor = None, limit: Limit = 100
) -> AttemptPage:
    """In order of their numbers."""
    return await read(service_of(request), views.attempt_page, run, cursor, limit)


@router.get("/runs/{run}/checkpoints", response_model=CheckpointPage, responses=READS)
async def checkpoints(
    request: Request, run: str, cursor: Cursor = None, limit: Limit = 100
) -> CheckpointPage:
    """Newest first."""
    return await read(service_of(request), views.checkpoint_page, run, cursor, limit)


@router.get("/runs/{run}/incidents", response_model=IncidentPage, responses=READS)
async def incidents(
    request: Request, run: str, cursor: Cursor = None, limit: Limit = 100
) -> IncidentPage:
    """Newest first."""
    return await read(service_of(request), views.incident_page, run, cursor, limit)


@router.get("/runs/{run}/revisions", response_model=RevisionPage, responses=READS)
async def revisions(
    request: Request, run: str, cursor: Cursor = None, limit: Limit = 100
) -> RevisionPage:
    """In order of their numbers."""
    return await read(service_of(request), views.revisions, run, cursor, limit)


@router.get("/runs/{run}/goodput", response_model=GoodputView, responses=READS)
async def goodput(request: Request, run: str) -> GoodputView:
    return await read(service_of(request), views.goodput, run)


@router.get("/runs/{run}/events", response_model=EventPage, responses=READS)
async def events(
    request: Request,
    run: str,
    kind: Annotated[list[Kind] | None, Query(max_length=50, description="May be repeated")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> EventPage:
    """Oldest first."""
    return await read(service_of(request), views.events, run, cursor, limit, tuple(kind or ()))


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
    after: RowId = None,
    before: RowId = None,
    tail: Annotated[int | None, Query(ge=1, le=5000)] = None,
    attempt: Annotated[int | None, Query(ge=1, le=1 << 31)] = None,
    rank: Annotated[int | None, Query(ge=0, le=1 << 31)] = None,
    since: Since = None,
    until: Until = None,
    search: Annotated[str | None, Query(max_length=200, description="In any case")] = None,
    regex: Annotated[str | None, Query(max_length=200, description="RE2 syntax")] = None,
    limit: BigLimit = 1000,
) -> LogPage:
    """Lines beyond the id `after`, below the id `before`, or the last `tail` ones; oldest first.

    With `before` and no `after`, or with `tail`, those nearest to the end are answered. A search
    looks at a limited number of lines a call: go on while there is a cursor, also where a page is
    empty. `rank` is that of the trainer.
    """
    wanted = Lines(after, before, attempt, rank, since, until)
    newest = tail is not None or (before is not None and after is None)
    try:
        return await read(
            service_of(request),
            views.logs,
            run,
            wanted,
            tail or limit,
            Search(search, regex),
            newest=newest,
        )
    except NotARegex as error:
        raise Refused(
            422,
            "invalid-regex",
            f"The regular expression is not one of RE2: {error}",
            "RE2 has no look-around and no back-references; 'search' takes plain text.",
        ) from None


async def write(service: Service, work: Callable[[Connection], T]) -> T:
    """Where another replica took the key or name meanwhile, a second look sees what it made."""
    try:
        try:
            return await service.writer.run(work)
        except IntegrityError:
            return await service.writer.run(work)
    except wishes.NoSuchRun as error:
        raise await no_such_run(service, str(error)) from None
    except wishes.NotAllowed as refusal:
        raise Refused(403, "not-your-run", str(refusal), "Ask its owner or an admin.") from None
    except wishes.NotAccepted as refusal:
        raise conflict(refusal) from None


def conflict(refusal: wishes.NotAccepted) -> Refused:
    return Refused(409, refusal.slug, refusal.detail, refusal.hint)
