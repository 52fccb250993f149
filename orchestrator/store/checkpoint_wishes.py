"""What people ask of single checkpoints: one more now, or one set apart for good.

Must not import the API.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select, update

from orchestrator.state import CheckpointState
from orchestrator.store import audit, reads
from orchestrator.store.audit import Actor
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import checkpoints, runs
from orchestrator.store.timeline import tell
from orchestrator.store.wishes import (
    NotAccepted,
    Unchanged,
    Wished,
    decided,
    locked,
    no_such_checkpoint,
    storable,
)
from orchestrator.wish_table import Wish


def save_now(
    connection: Connection, now: datetime, id_or_name: str, reason: str | None, who: Actor
) -> Wished:
    """Asks for one checkpoint beyond the regular ones.

    A request that no checkpoint has answered yet is the same one: asking again changes nothing.
    """
    run = locked(connection, id_or_name)
    found = decided(run, Wish.CHECKPOINT)
    if isinstance(found, Unchanged) or run.save_request > run.save_served:
        return Wished(run.id, changed=False)
    attempt = reads.current_attempt(connection, run.id)
    request = run.save_request + 1
    connection.execute(update(runs).where(runs.c.id == run.id).values(save_request=request))
    tell(connection, run.id, "save_asked", now, request=request, by=who.name, reason=reason)
    after = {"request": request, "reason": reason}
    audit.note(connection, now, who, "run.checkpoint", run.id, None, after)
    return Wished(run.id, changed=True, group=attempt.group if attempt is not None else None)


@dataclass(frozen=True)
class Quarantine:
    checkpoint: str
    reason: str


def quarantine(
    connection: Connection, now: datetime, id_or_name: str, asked: Quarantine, who: Actor
) -> Wished:
    """Sets a checkpoint apart; no attempt resumes from it any more. There is no way back.

    Refused while an attempt is starting from it: what that one trains would stand on it.
    """
    run = locked(connection, id_or_name)
    decided(run, Wish.QUARANTINE)
    c = checkpoints.c
    here = (c.run_id == run.id, c.id == asked.checkpoint)
    known = storable(asked.checkpoint)
    row = connection.execute(select(checkpoints).where(*here)).first() if known else None
    match None if row is None else CheckpointState(row.state):
        case None | CheckpointState.DELETED:
            raise no_such_checkpoint(run, "The run has no checkpoint with this id.")
        case CheckpointState.QUARANTINED:
            return Wished(run.id, changed=False)
        case CheckpointState.WRITTEN | CheckpointState.ACCEPTED | CheckpointState.VERIFIED:
            assert row is not None
    _refuse_in_use(connection, run, row.id)
    connection.execute(
        update(checkpoints)
        .where(*here)
        .values(state=CheckpointState.QUARANTINED, reason=f"{who.name}: {asked.reason}")
    )
    tell(
        connection,
        run.id,
        "checkpoint_quarantined",
        now,
        checkpoint_id=row.id,
        step=row.step,
        by=who.name,
        reason=asked.reason,
    )
    before = {"checkpoint": row.id, "state": row.state}
    after = {"state": CheckpointState.QUARANTINED, "reason": asked.reason}
    audit.note(connection, now, who, "run.quarantine", run.id, before, after)
    return Wished(run.id, changed=True)


def _refuse_in_use(connection: Connection, run: AnyRow, checkpoint: str) -> None:
    a = reads.current_attempt(connection, run.id)
    if a is not None and a.resume_checkpoint == checkpoint and a.first_step_at is None:
        raise NotAccepted(
            "checkpoint-in-use",
            f"Attempt {a.number} is starting from {checkpoint} just now.",
            f"Send it back to an older one first: longhaul rollback {run.name} --to STEP",
        )
