"""The commit of one plan: what all its changes share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.store.timeline import tell


class Stale(Exception):
    """The rows have changed since the decision was made: decide again."""


@dataclass(frozen=True)
class Commit:
    connection: Connection
    snap: Snapshot
    now: datetime

    @property
    def run_id(self) -> str:
        return self.snap.run.id

    def tell(self, kind: str, attempt: int | None = None, **body: object) -> None:
        tell(self.connection, self.run_id, kind, self.now, attempt=attempt, **body)
