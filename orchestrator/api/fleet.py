"""`GET /hosts`: what is held, where, for whom, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import Connection, select

from orchestrator.api import cursors
from orchestrator.api.auth import csrf_checked, service_of
from orchestrator.api.errors import problem_responses
from orchestrator.api.fleet_schemas import FleetGroup, FleetHost, FleetPage
from orchestrator.api.runs import Cursor, Limit, read
from orchestrator.service import Service
from orchestrator.store.conditions import HELD
from orchestrator.store.tables import host_groups, hosts, runs
from orchestrator.store.views import AnyRow
from worker.protocol import HostFacts

HOUR = timedelta(hours=1)

router = APIRouter(prefix="/api/v1", tags=["fleet"], dependencies=[Depends(csrf_checked)])


@router.get("/hosts", response_model=FleetPage, responses=problem_responses(401, 422))
async def list_hosts(
    request: Request,
    gone: Annotated[bool, Query(description="Also groups that were given back")] = False,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> FleetPage:
    """Host groups with their hosts, newest first."""
    return await read(service_of(request), fleet, cursor, limit, gone=gone)


def fleet(
    connection: Connection,
    service: Service,
    cursor: str | None = None,
    limit: int = 100,
    *,
    gone: bool = False,
) -> FleetPage:
    found = _groups(connection, cursor, limit + 1, gone=gone)
    shown, more = cursors.page(
        found, limit, lambda row: f"{cursors.micros(row.created_at)}.{row.name}"
    )
    held = _hosts(connection, [row.name for row in shown])
    return FleetPage(
        items=tuple(_group(service, row, held) for row in shown),
        next_cursor=more,
        currency=service.settings.currency,
    )


def _groups(
    connection: Connection, cursor: str | None, limit: int, *, gone: bool
) -> Sequence[AnyRow]:
    g = host_groups.c
    query = select(host_groups, runs.c.name.label("run_name")).join(runs, runs.c.id == g.run_id)
    if not gone:
        query = query.where(HELD)
    if cursor is not None:
        instant, name = cursors.parts(cursor, 2)
        at = cursors.instant(instant)
        query = query.where((g.created_at < at) | ((g.created_at == at) & (g.name < name)))
    query = query.order_by(g.created_at.desc(), g.name.desc()).limit(limit)
    return connection.execute(query).all()


def _hosts(connection: Connection, groups: Sequence[str]) -> Sequence[AnyRow]:
    h = hosts.c  # a row's own `index` is the method of tuples
    query = select(hosts, h.index.label("number")).where(h.group.in_(groups))
    return connection.execute(query.order_by(h.group, h.index)).all()


def _group(service: Service, row: AnyRow, held: Sequence[AnyRow]) -> FleetGroup:
    until = row.released_at or service.clock.now()
    hours = max(0.0, (until - (row.ready_at or row.created_at)) / HOUR)
    price = row.price_per_hour
    return FleetGroup(
        name=row.name,
        run=row.run_id,
        run_name=row.run_name,
        generation=row.generation,
        provider=row.provider,
        zone=row.zone,
        devices=row.devices,
        state=row.state,
        detail=row.detail,
        created_at=row.created_at,
        ready_at=row.ready_at,
        released_at=row.released_at,
        price_per_hour=price,
        cost=None if price is None else price * hours,
        hosts=tuple(_host(host) for host in held if host.group == row.name),
    )


def _host(row: AnyRow) -> FleetHost:
    return FleetHost(
        index=row.number,
        address=row.address,
        hostname=HostFacts.model_validate_json(row.facts).hostname if row.facts else None,
        protocol=row.protocol,
        registered_at=row.registered_at,
        last_seen_at=row.last_seen_at,
        running_attempt=row.running_attempt,
        notice=row.notice,
        notice_at=row.notice_at,
    )
