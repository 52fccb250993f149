"""Drops what is older than people want to keep: raw points that are summed up, and log lines.

Each call is one short transaction; a caller repeats it while it answers that there is more.
Timelines, checkpoints, incidents and evaluations are kept as long as their run.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, and_, delete, func, select

from orchestrator.ledger.retention import Kept, Telling, droppable, kept
from orchestrator.store.rollups import hold_reports
from orchestrator.store.tables import (
    attempts,
    branches,
    checkpoints,
    log_lines,
    metric_points,
    metric_rollups,
)

STEPS_AT_ONCE = 8192
LINES_AT_ONCE = 5000
COARSE = 4096  # points go in stretches of so many steps


def old_attempts(connection: Connection, cutoff: datetime) -> list[tuple[str, int]]:
    """Attempts that may have told something before `cutoff`."""
    a = attempts.c
    query = select(a.run_id, a.number).where(a.created_at < cutoff).order_by(a.run_id, a.number)
    return [(run_id, number) for run_id, number in connection.execute(query)]


def drop_points(connection: Connection, run_id: str, attempt: int, cutoff: datetime) -> bool:
    """Drops some of the attempt's points from before `cutoff`; True when there may be more."""
    r = metric_rollups.c
    summed = (r.run_id == run_id, r.attempt == attempt, r.span == COARSE)
    newest = select(func.max(r.first_step)).where(*summed, r.last_at < cutoff)
    first = connection.scalar(newest)
    if first is None:
        return False
    hold_reports(connection, run_id, attempt)
    m = metric_points.c
    mine = and_(m.run_id == run_id, m.attempt == attempt)
    for after, through in droppable(first + COARSE - 1, _kept(connection, run_id)):
        there = and_(mine, m.step > after, m.step <= through)
        oldest = connection.scalar(select(func.min(m.step)).where(there))
        if oldest is not None:
            connection.execute(delete(metric_points).where(there, m.step < oldest + STEPS_AT_ONCE))
            return True
    return False


def _kept(connection: Connection, run_id: str) -> tuple[Kept, ...]:
    a, m = attempts.c, metric_points.c
    mine = and_(m.run_id == run_id, m.attempt == a.number)
    first = select(func.min(m.step)).where(mine).correlate(attempts).scalar_subquery()
    last = select(func.max(m.step)).where(mine).correlate(attempts).scalar_subquery()
    query = select(a.resumed_from_step, first, last).where(a.run_id == run_id).order_by(a.number)
    tellings = [
        Telling(resumed, begins, ends)
        for resumed, begins, ends in connection.execute(query)
        if begins is not None
    ]
    forks = select(branches.c.from_step).where(branches.c.run_id == run_id)
    saves = select(checkpoints.c.step).where(checkpoints.c.run_id == run_id)
    cuts = {*connection.execute(forks).scalars(), *connection.execute(saves).scalars()}
    return kept(tellings, cuts)


def log_runs(connection: Connection) -> list[str]:
    """The runs that have log lines."""
    a = attempts.c
    return list(connection.execute(select(a.run_id).distinct().order_by(a.run_id)).scalars())


def log_bound(connection: Connection, run_id: str, most: int) -> int:
    """The id of the newest line beyond the newest `most` ones of the run; 0 when it has no more."""
    line = log_lines.c
    query = select(line.id).where(line.run_id == run_id).order_by(line.id.desc())
    return connection.execute(query.offset(most).limit(1)).scalar() or 0


def drop_lines(connection: Connection, run_id: str, cutoff: datetime | None, bound: int) -> bool:
    """Drops some of the run's oldest lines: from before `cutoff`, or with ids up to `bound`."""
    line = log_lines.c
    oldest = select(line.id, line.at).where(line.run_id == run_id).order_by(line.id)
    found = connection.execute(oldest.limit(LINES_AT_ONCE)).all()
    over = [row.id for row in found if row.id <= bound or (cutoff is not None and row.at < cutoff)]
    if not over:
        return False
    ids = and_(line.id >= over[0], line.id <= over[-1], line.run_id == run_id)
    late = line.at < cutoff if cutoff is not None else line.id <= bound
    connection.execute(delete(log_lines).where(ids, (line.id <= bound) | late))
    return len(over) == LINES_AT_ONCE
