"""The routes of orphans: what providers hold that no run wants, and the wish to give it back."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Depends, Request
from sqlalchemy import Connection

from orchestrator.api.auth import Admin, csrf_checked, service_of
from orchestrator.api.errors import problem_responses
from orchestrator.api.runs import read
from orchestrator.api.schemas import OrphansView, OrphanView
from orchestrator.service import Service
from orchestrator.store import audit, orphans
from orchestrator.sweep import SWEEP

router = APIRouter(prefix="/api/v1", tags=["orphans"])


@router.get(
    "/orphans",
    response_model=OrphansView,
    responses=problem_responses(401),
    dependencies=[Depends(csrf_checked)],
)
async def list_orphans(request: Request) -> OrphansView:
    """What providers hold in this installation's name and no run wants, and what it costs."""
    return await read(service_of(request), orphans_view)


@router.post(
    "/orphans:reap",
    status_code=202,
    response_model=OrphansView,
    responses=problem_responses(401, 403),
)
async def reap_orphans(request: Request, session: Admin) -> OrphansView:
    """Has every sure orphan given back; after a restore, this lets the sweep do so again."""
    service, now = service_of(request), service_of(request).clock.now()

    def confirm(connection: Connection) -> None:
        names = [orphan.name for orphan in orphans.confirm(connection, _grace(service), now)]
        audit.note(connection, now, session.actor, "orphans.reap", None, None, {"names": names})

    await service.writer.run(confirm)
    service.wakes.notify(SWEEP)
    return await read(service, orphans_view)


def _grace(service: Service) -> timedelta:
    return timedelta(seconds=service.settings.orphan_grace_seconds)


def orphans_view(connection: Connection, service: Service) -> OrphansView:
    found = orphans.listed(connection, _grace(service))
    sure = [orphan for orphan in found if orphan.sure]
    return OrphansView(
        items=tuple(OrphanView(**vars(orphan), cost=orphan.cost) for orphan in found),
        cost_per_hour=sum(orphan.price_per_hour or 0.0 for orphan in sure),
        currency=service.settings.currency,
        only_listed=not orphans.reaps(connection),
    )
