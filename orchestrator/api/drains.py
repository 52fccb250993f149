"""The routes that empty a host: runs save and leave it, and nobody gets it until that is undone."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from sqlalchemy import Connection

from orchestrator.api.auth import Checked, csrf_checked, service_of
from orchestrator.api.bodies import read_model
from orchestrator.api.drain_schemas import DrainedRun, DrainRequest, DrainView
from orchestrator.api.errors import Refused, problem_responses
from orchestrator.api.runs import read, write
from orchestrator.providers.inventory import HOST_NAME_PATTERN
from orchestrator.service import Service
from orchestrator.store import drains
from orchestrator.store.inventory import NoSuchHost
from orchestrator.wakes import LOOP, decision_topic

router = APIRouter(prefix="/api/v1", tags=["fleet"], dependencies=[Depends(csrf_checked)])
HostName = Annotated[str, Path(pattern=HOST_NAME_PATTERN)]
_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/DrainRequest"}}}


@router.post(
    "/hosts/{host}/drain",
    status_code=202,
    response_model=DrainView,
    responses={
        **problem_responses(400, 401, 403, 404, 413, 415, 422),
        200: {"model": DrainView, "description": "So asked already; nothing was changed"},
    },
    openapi_extra={"requestBody": {"required": False, "content": _BODY}},
)
async def drain(
    request: Request, response: Response, host: HostName, session: Checked
) -> DrainView:
    """Has every run on the host save, leave it, and go on elsewhere; nobody gets it meanwhile.

    `local` is the service's own machine. Ask again, or GET the same address, to see who is there.
    """
    asked = await read_model(request, DrainRequest, optional=True)
    service, who = service_of(request), session.actor
    now = service.clock.now()
    try:
        made, new = await write(
            service, lambda connection: drains.ask(connection, now, host, asked.reason, who)
        )
    except NoSuchHost:
        raise _no_such_host(host) from None
    service.queue.changed()
    response.status_code = 202 if new else 200
    view = await read(service, _view, made)
    _wake(service, view)
    return view


@router.get(
    "/hosts/{host}/drain", response_model=DrainView, responses=problem_responses(401, 404, 422)
)
async def drain_state(request: Request, host: HostName) -> DrainView:
    """Which runs still hold a part of a host that is drained."""
    try:
        return await read(service_of(request), _found, host)
    except NoSuchHost:
        raise _no_such_host(host) from None
    except drains.NotDrained:
        raise Refused(
            404,
            "not-drained",
            f"Nobody asked that runs leave the host {host}.",
            f"Ask for it: longhaul drain {host}",
        ) from None


@router.delete(
    "/hosts/{host}/drain",
    status_code=204,
    response_model=None,
    responses=problem_responses(401, 403, 404, 422),
)
async def undrain(request: Request, host: HostName, session: Checked) -> None:
    """Lets runs have the host again. Those that have left do not come back by themselves."""
    service, now = service_of(request), service_of(request).clock.now()
    try:
        await write(service, lambda connection: drains.undo(connection, now, host, session.actor))
    except NoSuchHost:
        raise _no_such_host(host) from None
    service.queue.changed()
    service.wakes.notify(LOOP)


def _found(connection: Connection, service: Service, host: str) -> DrainView:
    provider = drains.provider_of(connection, host)
    return _view(connection, service, drains.find(connection, provider, host))


def _view(connection: Connection, service: Service, drain: drains.Drain) -> DrainView:
    there = drains.held_by(connection, drain)
    return DrainView(
        host=drain.host,
        provider=drain.provider,
        reason=drain.reason,
        asked_by=drain.asked_by,
        asked_at=drain.asked_at,
        done=not there,
        runs=tuple(
            DrainedRun(
                id=row.id,
                name=row.name,
                state=row.state,
                group=row.group,
            )
            for row in there
        ),
    )


def _wake(service: Service, view: DrainView) -> None:
    if view.runs:
        service.wakes.notify(LOOP, *(decision_topic(run.id) for run in view.runs))


def _no_such_host(host: str) -> Refused:
    return Refused(
        404,
        "no-such-host",
        f"The inventory has no host named {host}.",
        "List them with longhaul hosts list; the service's own machine is called local.",
    )
