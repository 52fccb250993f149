"""What a page may ask for: the seam between the dashboard and the database."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from orchestrator.api.fleet_schemas import FleetPage
from orchestrator.api.history_schemas import Chart, LogLine
from orchestrator.api.schemas import (
    AttemptView,
    CheckpointView,
    GoodputView,
    IncidentView,
    OrphansView,
    RunDetail,
    RunSummary,
)


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

    def logs(self, run_id: str, lines: int) -> tuple[LogLine, ...]:
        """The last `lines` lines, oldest first."""
        ...
