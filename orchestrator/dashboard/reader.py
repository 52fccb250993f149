"""What a page may ask for: the seam between the dashboard and the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from orchestrator.api.access_schemas import AuditPage, TokenView
from orchestrator.api.fleet_schemas import FleetPage
from orchestrator.api.history_schemas import Chart, LogLine
from orchestrator.api.inventory_schemas import InventoryView
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


@dataclass(frozen=True)
class LogAsked:
    """Which log lines: with `text` in them in any case, of one `rank`."""

    text: str | None = None
    rank: int | None = None


@dataclass(frozen=True)
class AuditAsked:
    """Which deeds: of one actor, of one action, before the row with the id `cursor`."""

    actor: str | None = None
    action: str | None = None
    cursor: int | None = None


ALL_LINES = LogAsked()


class Reader(Protocol):
    """One consistent look at the installation. `run_id` is always an id, never a name."""

    def now(self) -> datetime: ...

    def runs(self) -> tuple[RunSummary, ...]:
        """Newest first; at most a hundred."""
        ...

    def run(self, name: str) -> RunDetail | None:
        """By unique name or by id; None where there is none."""
        ...

    def attempts(self, run_id: str) -> tuple[AttemptView, ...]:
        """In order of their number."""
        ...

    def checkpoints(self, run_id: str) -> tuple[CheckpointView, ...]:
        """Newest first."""
        ...

    def incidents(self, run_id: str) -> tuple[IncidentView, ...]:
        """Newest first."""
        ...

    def chart(self, run_id: str, columns: int, from_step: int = 1) -> Chart:
        """The canonical history from `from_step` on, in about `columns` columns."""
        ...

    def losses(self, run_id: str, points: int) -> tuple[float, ...]:
        """About `points` losses spread over the whole canonical history, oldest first."""
        ...

    def goodput(self, run_id: str) -> GoodputView: ...

    def hosts(self) -> FleetPage:
        """What is held now; at most two hundred groups."""
        ...

    def orphans(self) -> OrphansView: ...

    def logs(self, run_id: str, lines: int, asked: LogAsked = ALL_LINES) -> tuple[LogLine, ...]:
        """The last `lines` lines that are asked for, oldest first."""
        ...

    def revisions(self, run_id: str) -> tuple[RevisionView, ...]:
        """In order of their numbers."""
        ...

    def branches(self, run_id: str) -> tuple[BranchView, ...]:
        """In order of their numbers."""
        ...

    def trainers(self, run_id: str) -> tuple[TrainerView, ...]:
        """Of the attempt that lives, by rank."""
        ...

    def spent(self, since: datetime, until: datetime) -> float | None:
        """What all hosts cost in that time; None where no host has a price."""
        ...

    def inventory(self) -> InventoryView | None:
        """The hosts of provider ssh; None where the service has no such provider."""
        ...

    def tokens(self) -> tuple[TokenView, ...]:
        """Newest first, with those that do not count any more."""
        ...

    def audit(self, asked: AuditAsked) -> AuditPage:
        """Newest first."""
        ...
