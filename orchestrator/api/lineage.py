"""From rows to what people read: the branches of a run, and the processes that train it now.

Must not write, nor import FastAPI.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from orchestrator.api.logs import clean
from orchestrator.api.schemas import BranchView, TrainerView
from orchestrator.service import Service
from orchestrator.state import AttemptState
from orchestrator.store import views as rows
from orchestrator.store.tables import branches as branch_table
from orchestrator.store.wishes import find


def branches(connection: Connection, service: Service, id_or_name: str) -> tuple[BranchView, ...]:
    """In order of their numbers; the run is on one of them."""
    b = branch_table.c
    run = find(connection, id_or_name)
    query = select(
        b.number, b.parent, b.from_checkpoint, b.from_step, b.reason, b.created_at
    ).where(b.run_id == run.id)
    found = connection.execute(query.order_by(b.number))
    return tuple(BranchView.model_validate(row) for row in found.mappings())


def trainers(connection: Connection, service: Service, id_or_name: str) -> tuple[TrainerView, ...]:
    """Of the attempt that lives, by rank; nobody where none does."""
    run = find(connection, id_or_name)
    attempt = rows.last_attempt(connection, run.id)
    if attempt is None or attempt.state == AttemptState.ENDED:
        return ()
    return tuple(
        TrainerView(
            rank=row.rank,
            phase=row.phase,
            last_step=row.last_step,
            last_step_at=row.last_step_at,
            step_seconds=row.pace_seconds,
            own_seconds=row.pace_own,
            data_wait=row.pace_data_wait,
            slow=None if row.slow_why is None else clean(row.slow_why),
        )
        for row in rows.trainers_of(connection, run.id, attempt.number)
    )
