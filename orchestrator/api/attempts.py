"""From rows to what people read: attempts, with what they trained again.

Must not write, nor import FastAPI.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from orchestrator.api import cursors
from orchestrator.api.happenings import evidence
from orchestrator.api.schemas import AttemptPage, AttemptView
from orchestrator.service import Service
from orchestrator.store import history
from orchestrator.store import views as rows
from orchestrator.store.wishes import find


def attempts(connection: Connection, service: Service, id_or_name: str) -> tuple[AttemptView, ...]:
    """In order of their numbers."""
    run = find(connection, id_or_name)
    return _views(connection, run.id, rows.attempts_of(connection, run.id))


def attempt_page(
    connection: Connection,
    service: Service,
    id_or_name: str,
    cursor: str | None = None,
    limit: int = 100,
) -> AttemptPage:
    """In order of their numbers; the cursor is the number of the last one shown."""
    run = find(connection, id_or_name)
    after = cursors.optional(cursors.number, cursor) or 0
    found = rows.attempts_of(connection, run.id, after, limit + 1)
    shown, more = cursors.page(found, limit, lambda row: str(row.number))
    return AttemptPage(items=_views(connection, run.id, shown), next_cursor=more)


def _views(
    connection: Connection, run_id: str, made: Sequence[rows.AnyRow]
) -> tuple[AttemptView, ...]:
    """Of attempts that follow one another."""
    if not made:
        return ()
    compared = history.replays(connection, run_id)
    reached = history.told(connection, run_id)
    before = rows.attempt_end(connection, run_id, made[0].number - 1)
    ends = (before, *(row.ended_at for row in made))
    return tuple(
        _view(connection, row, reached.get(row.number), compared[row.number], ended_before)
        for row, ended_before in zip(made, ends, strict=False)
    )


def _view(
    connection: Connection,
    row: rows.AnyRow,
    last_step: int | None,
    replay: history.Replay,
    ended_before: datetime | None,
) -> AttemptView:
    first = rows.first_point(connection, row.run_id, row.number)
    first_at = row.first_step_at if first is None else first.at
    return AttemptView(
        number=row.number,
        state=row.state,
        revision=row.revision,
        branch=row.branch,
        group=row.group,
        processes=row.processes,
        created_at=row.created_at,
        first_step_at=first_at,
        ended_at=row.ended_at,
        resume_checkpoint=row.resume_checkpoint,
        resumed_from_step=row.resumed_from_step,
        last_step=last_step,
        accepted_step=row.accepted_step,
        verdict=row.verdict,
        summary=row.summary,
        evidence=evidence(row.evidence),
        replayed_steps=replay.steps,
        replayed_until=_replayed_until(connection, row, replay),
        replayed_bit_identical=replay.identical,
        first_difference_step=replay.first_difference,
        replayed_loss_apart=replay.apart,
        recovery_seconds=_seconds_between(ended_before, first_at),
        save_seconds=row.save_seconds,
        save_why=row.save_why,
        drill=row.drill,
        drill_at=row.drill_at,
    )


def _replayed_until(
    connection: Connection, row: rows.AnyRow, replay: history.Replay
) -> datetime | None:
    if not replay.steps:
        return None
    last = row.resumed_from_step + replay.steps
    return rows.replay_end(connection, row.run_id, row.number, last)


def _seconds_between(earlier: datetime | None, later: datetime | None) -> float | None:
    if earlier is None or later is None:
        return None
    return max(0.0, (later - earlier).total_seconds())
