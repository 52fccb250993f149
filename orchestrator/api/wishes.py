"""The routes of what people want of a run: pause, resume, cancel, roll back, fork, save, delete.

Owns status codes and parameters, and what is checked of a new spec before anything is written.
Which wish makes sense when is `wish_table`'s, what is written the store's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from sqlalchemy import Connection

from orchestrator import revisions, spec_paths
from orchestrator.api import views
from orchestrator.api.auth import Checked, csrf_checked, service_of
from orchestrator.api.bodies import fitted, read_model
from orchestrator.api.errors import Refused, problem_responses
from orchestrator.api.requests import (
    Asking,
    ForkRequest,
    QuarantineRequest,
    ResumeRequest,
    RollbackRequest,
    SaveRequest,
)
from orchestrator.api.runs import Key, read, refuse_unfit, write
from orchestrator.api.schemas import FieldError, RunDetail
from orchestrator.service import Service
from orchestrator.state import Desired
from orchestrator.store import branching, checkpoint_wishes, forks, reads, resuming
from orchestrator.store import wishes as stored
from orchestrator.store.audit import Actor
from orchestrator.store.branching import Rollback
from orchestrator.store.checkpoint_wishes import Quarantine
from orchestrator.store.forks import Fork
from orchestrator.store.resuming import Resume, Revised
from orchestrator.store.wishes import Submitted, Wished
from orchestrator.wakes import LOOP, group_topic, run_topic
from worker.protocol import AnySpec, spec_model

router = APIRouter(prefix="/api/v1", tags=["runs"], dependencies=[Depends(csrf_checked)])

SO_ALREADY: dict[int | str, dict[str, Any]] = {
    200: {"model": RunDetail, "description": "So wished already; nothing was changed"}
}
WISHES = problem_responses(401, 403, 404, 409, 422)
WITH_BODY = problem_responses(400, 401, 403, 404, 409, 413, 415, 422)
Checkpoint = Annotated[str, Path(max_length=40)]


def body(model: type[Asking], *, required: bool) -> dict[str, Any]:
    """The description of a body that is read by hand, with its limit on bytes."""
    schema = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    return {"requestBody": {"required": required, "content": {"application/json": schema}}}


# ---- pause, cancel, delete ---------------------------------------------------------------------


@router.post(
    "/runs/{run}/pause",
    status_code=202,
    response_model=RunDetail,
    responses={**WISHES, **SO_ALREADY},
)
async def pause(request: Request, response: Response, run: str, session: Checked) -> RunDetail:
    """The trainers save and leave; a later resume goes on from there."""
    who = session.actor
    return await _wish(
        request, response, lambda c, now: stored.wish(c, now, run, Desired.PAUSE, who)
    )


@router.post(
    "/runs/{run}/cancel",
    status_code=202,
    response_model=RunDetail,
    responses={**WISHES, **SO_ALREADY},
)
async def cancel(request: Request, response: Response, run: str, session: Checked) -> RunDetail:
    """Ends the run for good; its checkpoints stay."""
    who = session.actor
    return await _wish(
        request, response, lambda c, now: stored.wish(c, now, run, Desired.CANCEL, who)
    )


@router.delete("/runs/{run}", status_code=204, response_model=None, responses=WISHES)
async def remove(request: Request, run: str, session: Checked) -> None:
    """Forgets a run that is over and holds no hosts; its files in the storage stay.

    Refused while a fork begins at one of its checkpoints and has none of its own.
    """
    service = service_of(request)
    now, who = service.clock.now(), session.actor
    run_id = await write(service, lambda connection: stored.remove(connection, now, run, who))
    service.wakes.notify(LOOP, run_topic(run_id))


# ---- resume, rollback, fork --------------------------------------------------------------------


@router.post(
    "/runs/{run}/resume",
    status_code=202,
    response_model=RunDetail,
    responses={**WITH_BODY, **SO_ALREADY},
    openapi_extra=body(ResumeRequest, required=False),
)
async def resume(request: Request, response: Response, run: str, session: Checked) -> RunDetail:
    """Lets a run go on: as it is, under another spec (`set`), or from an earlier checkpoint.

    `set` makes a new revision; what would change the trajectory needs a fork. `from` and
    `skip_batches` open a new branch. A run that runs is restarted only where that is needed.
    """
    asked = await read_model(request, ResumeRequest, optional=True)
    revised = await _revised(request, run, asked) if asked.set else None
    if asked.expected_revision is not None and revised is None:
        await _spec(service_of(request), run, asked.expected_revision)
    wanted = Resume(asked.reason, revised, asked.start, asked.skip_batches)
    who = session.actor
    return await _wish(request, response, lambda c, now: resuming.resume(c, now, run, wanted, who))


@router.post(
    "/runs/{run}/rollback",
    status_code=202,
    response_model=RunDetail,
    responses=WITH_BODY,
    openapi_extra=body(RollbackRequest, required=True),
)
async def rollback(request: Request, response: Response, run: str, session: Checked) -> RunDetail:
    """Opens a new branch at an earlier checkpoint; what came after it stays on the old branch.

    A run that runs is restarted from there at once; a paused or failed one stays so.
    """
    asked = await read_model(request, RollbackRequest)
    wanted = Rollback(asked.to, asked.skip_batches, asked.reason)
    who = session.actor
    return await _wish(
        request, response, lambda c, now: branching.rollback(c, now, run, wanted, who)
    )


@router.post(
    "/runs/{run}/fork",
    status_code=201,
    response_model=RunDetail,
    responses={**WITH_BODY, 200: {"model": RunDetail, "description": "Made before with this key"}},
    openapi_extra=body(ForkRequest, required=True),
)
async def fork(
    request: Request, response: Response, run: str, session: Checked, key: Key = None
) -> RunDetail:
    """Makes a new run that begins at a checkpoint of this one, with other fields where `set` so.

    The architecture stays. The same `Idempotency-Key` with the same body makes one run.
    """
    service, who = service_of(request), session.actor
    asked = await read_model(request, ForkRequest)
    given = asked.model_dump(mode="json", exclude_unset=True)
    digest, made = await read(service, _forked_before, run, key, who, given)
    if made is None:
        revised = await _forked(request, run, asked)
        wanted = Fork(revised, asked.at, asked.reason, key, digest)
        now = service.clock.now()
        submitted = await write(service, lambda c: forks.fork(c, now, run, wanted, who))
    else:
        submitted = Submitted(made, made=False)
    if submitted.made:
        service.wakes.notify(LOOP, run_topic(submitted.run_id))
    response.status_code = 201 if submitted.made else 200
    response.headers["Location"] = f"/api/v1/runs/{submitted.run_id}"
    return await read(service, views.run_detail, submitted.run_id)


# ---- single checkpoints ------------------------------------------------------------------------


@router.post(
    "/runs/{run}/checkpoint",
    status_code=202,
    response_model=RunDetail,
    responses={**WITH_BODY, **SO_ALREADY},
    openapi_extra=body(SaveRequest, required=False),
)
async def checkpoint(request: Request, response: Response, run: str, session: Checked) -> RunDetail:
    """Saves at the next step that all trainers agree on, beyond the regular saves."""
    asked = await read_model(request, SaveRequest, optional=True)
    who = session.actor
    return await _wish(
        request, response, lambda c, now: checkpoint_wishes.save_now(c, now, run, asked.reason, who)
    )


@router.post(
    "/runs/{run}/checkpoints/{checkpoint}/quarantine",
    status_code=202,
    response_model=RunDetail,
    responses={**WITH_BODY, **SO_ALREADY},
    openapi_extra=body(QuarantineRequest, required=True),
)
async def quarantine(
    request: Request, response: Response, run: str, checkpoint: Checkpoint, session: Checked
) -> RunDetail:
    """Sets a checkpoint apart for good: no attempt resumes from it. Its files stay."""
    asked = await read_model(request, QuarantineRequest)
    wanted, who = Quarantine(checkpoint, asked.reason), session.actor
    return await _wish(
        request, response, lambda c, now: checkpoint_wishes.quarantine(c, now, run, wanted, who)
    )


# ---- a new spec --------------------------------------------------------------------------------


async def _revised(request: Request, run: str, asked: ResumeRequest) -> Revised:
    """The run's spec with the changes put in, checked whole; refuses what needs a fork."""
    service = service_of(request)
    name, number, before = await _spec(service, run, asked.expected_revision)
    after = _changed(before, asked.set)
    changed = revisions.changes(before, after)
    if changed.fixed:
        raise _never(changed.fixed)
    if changed.trajectory:
        settings = "".join(f" --set {path}=VALUE" for path in asked.set)
        raise Refused(
            409,
            "changes-the-trajectory",
            f"{', '.join(changed.trajectory)} would make another run of it: the losses up to here"
            " belong to the spec as it is.",
            f"Fork it: longhaul fork {name} --at CHECKPOINT --name NAME{settings}",
        )
    if changed.all:
        await refuse_unfit(request, service, after)
    return Revised(after, number)


async def _forked(request: Request, run: str, asked: ForkRequest) -> Revised:
    """The fork's whole spec: the source's, under another name and with the changes put in."""
    service = service_of(request)
    _, number, before = await _spec(service, run, asked.expected_revision)
    after = _changed(before, asked.set | {"name": asked.name})
    fixed = tuple(path for path in revisions.changes(before, after).fixed if path != "name")
    if fixed:
        raise _never(fixed)
    await refuse_unfit(request, service, after)
    return Revised(after, number)


def _never(fields: tuple[str, ...]) -> Refused:
    return Refused(
        409,
        "can-not-change",
        f"{', '.join(fields)} can not change: a checkpoint fits one architecture, and a run keeps"
        " its name.",
        "Submit a new run with the other architecture: longhaul submit FILE",
    )


def _changed(before: AnySpec, changes: Mapping[str, object]) -> AnySpec:
    try:
        spec = spec_paths.with_changes(before.model_dump(mode="json"), changes)
    except spec_paths.BadPath as error:
        fault = FieldError(pointer="/set", detail=f"{error}.")
        raise Refused(422, "invalid-spec", "A path leads nowhere.", errors=(fault,)) from None
    return fitted(spec, spec_model(spec))


async def _spec(service: Service, run: str, expected: int | None) -> tuple[str, int, AnySpec]:
    """The run's name, its revision and its spec; refuses another revision than expected."""
    name, number, job = await read(service, _current_spec, run)
    if expected is not None and expected != number:
        raise Refused(
            409,
            "revision-changed",
            f"The run is at revision {number}, not at {expected}.",
            f"Look at what changed and ask again: longhaul show {name}",
        )
    return name, number, job


def _current_spec(connection: Connection, service: Service, run: str) -> tuple[str, int, AnySpec]:
    row = stored.find(connection, run)
    return row.name, row.revision, reads.job_spec(connection, row.id, row.revision)


def _forked_before(
    connection: Connection,
    service: Service,
    run: str,
    key: str | None,
    who: Actor,
    given: Mapping[str, object],
) -> tuple[str, str | None]:
    """The request's digest, the same for the run's id as for its name; and the fork it made."""
    digest = forks.request_digest(stored.find(connection, run).id, given)
    try:
        return digest, stored.known_request(connection, key, who.name, lambda: digest)
    except stored.NotAccepted as refusal:
        raise Refused(409, refusal.slug, refusal.detail, refusal.hint) from None


# ---- one deed ----------------------------------------------------------------------------------


async def _wish(
    request: Request, response: Response, work: Callable[[Connection, datetime], Wished]
) -> RunDetail:
    """Does `work` in one transaction, wakes who waits for it, and answers the run as it is now."""
    service = service_of(request)
    now = service.clock.now()
    wished = await write(service, lambda connection: work(connection, now))
    if wished.changed:
        groups = () if wished.group is None else (group_topic(wished.group),)
        service.wakes.notify(LOOP, run_topic(wished.run_id), *groups)
    else:
        response.status_code = 200
    return await read(service, views.run_detail, wished.run_id)
