"""The `Reader` over the database, by way of the API's own views."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from fastapi import Request
from sqlalchemy import Connection

from orchestrator.api import lineage, views
from orchestrator.api.access_schemas import AuditEntry, AuditPage, TokenView
from orchestrator.api.auth import service_of
from orchestrator.api.fleet import fleet
from orchestrator.api.fleet_schemas import FleetPage
from orchestrator.api.history_schemas import Chart, LogLine
from orchestrator.api.inventory import inventory_view
from orchestrator.api.inventory_schemas import InventoryView
from orchestrator.api.logs import Search
from orchestrator.api.orphans import orphans_view
from orchestrator.api.schemas import (
    AttemptView,
    BranchView,
    CheckpointView,
    GoodputView,
    IncidentView,
    OrphansView,
    RevisionView,
    RunDetail,
    RunSummary,
    TrainerView,
)
from orchestrator.dashboard.reader import ALL_LINES, AuditAsked, LogAsked, Reader
from orchestrator.service import Service
from orchestrator.store import audit, spending, tokens
from orchestrator.store.log_rows import Lines
from orchestrator.store.wishes import NoSuchRun

MOST_RUNS = 100
MOST_GROUPS = 200
DEEDS_A_PAGE = 100


class ViewsReader:
    """Reads within one transaction of `connection`."""

    def __init__(self, connection: Connection, service: Service) -> None:
        self._connection = connection
        self._service = service

    def now(self) -> datetime:
        return self._service.clock.now()

    def runs(self) -> tuple[RunSummary, ...]:
        return views.run_page(self._connection, self._service, limit=MOST_RUNS).items

    def run(self, name: str) -> RunDetail | None:
        try:
            return views.run_detail(self._connection, self._service, name)
        except NoSuchRun:
            return None

    def attempts(self, run_id: str) -> tuple[AttemptView, ...]:
        return views.attempts(self._connection, self._service, run_id)

    def checkpoints(self, run_id: str) -> tuple[CheckpointView, ...]:
        return views.checkpoints(self._connection, self._service, run_id)

    def incidents(self, run_id: str) -> tuple[IncidentView, ...]:
        return views.incidents(self._connection, self._service, run_id)

    def chart(self, run_id: str, columns: int, from_step: int = 1) -> Chart:
        return views.chart(self._connection, self._service, run_id, columns, from_step)

    def losses(self, run_id: str, points: int) -> tuple[float, ...]:
        columns = self.chart(run_id, points).columns
        return tuple(column.loss_mean for column in columns if column.loss_mean is not None)

    def goodput(self, run_id: str) -> GoodputView:
        return views.goodput(self._connection, self._service, run_id)

    def hosts(self) -> FleetPage:
        return fleet(self._connection, self._service, limit=MOST_GROUPS)

    def orphans(self) -> OrphansView:
        return orphans_view(self._connection, self._service)

    def logs(self, run_id: str, lines: int, asked: LogAsked = ALL_LINES) -> tuple[LogLine, ...]:
        wanted, search = Lines(rank=asked.rank), Search(asked.text)
        found = views.logs(
            self._connection, self._service, run_id, wanted, lines, search, newest=True
        )
        return found.items

    def revisions(self, run_id: str) -> tuple[RevisionView, ...]:
        return views.revisions(self._connection, self._service, run_id).items

    def branches(self, run_id: str) -> tuple[BranchView, ...]:
        return lineage.branches(self._connection, self._service, run_id)

    def trainers(self, run_id: str) -> tuple[TrainerView, ...]:
        return lineage.trainers(self._connection, self._service, run_id)

    def spent(self, since: datetime, until: datetime) -> float | None:
        return spending.spent(self._connection, since, until)

    def inventory(self) -> InventoryView | None:
        return None if self._service.ssh is None else inventory_view(self._service.ssh)

    def tokens(self) -> tuple[TokenView, ...]:
        return tuple(TokenView(**vars(one)) for one in tokens.all_tokens(self._connection))

    def audit(self, asked: AuditAsked) -> AuditPage:
        found = audit.page(
            self._connection, DEEDS_A_PAGE + 1, asked.cursor, asked.actor, None, asked.action
        )
        items = tuple(AuditEntry(**vars(one)) for one in found[:DEEDS_A_PAGE])
        more = str(items[-1].id) if len(found) > DEEDS_A_PAGE else None
        return AuditPage(items=items, next_cursor=more)


def reader(request: Request) -> Iterator[Reader]:
    """A dependency: one consistent look for one request."""
    service = service_of(request)
    with service.read.connect() as connection:
        yield ViewsReader(connection, service)
