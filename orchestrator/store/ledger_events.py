"""What agents tell about checkpoints: written, offered, proven, rejected, gone.

Owns how a checkpoint enters the ledger: only the current attempt's, under its derived id, in its
own directory; a superseded attempt changes nothing here (invariant 2).
"""

from __future__ import annotations

from datetime import datetime
from pathlib import PurePosixPath

from sqlalchemy import ColumnElement, Connection, RowMapping, or_, select, update

from orchestrator.records import Attempt
from orchestrator.state import USABLE_CHECKPOINTS, AttemptState, CheckpointState
from orchestrator.store import rows
from orchestrator.store.callers import Caller, StaleAttempt, identify_instance
from orchestrator.store.conditions import CURRENT
from orchestrator.store.tables import attempts, checkpoints, runs, upsert
from orchestrator.store.timeline import fit, tell
from worker.protocol import (
    CheckpointAccepted,
    CheckpointOffer,
    CheckpointRejected,
    CheckpointVerified,
    CheckpointWritten,
    FilesDeleted,
    Resumed,
)

LedgerEvent = CheckpointWritten | CheckpointRejected | CheckpointVerified | FilesDeleted | Resumed
REASON_LENGTH = 2000
DIGEST_LENGTH = 64


def note(
    connection: Connection,
    attempt: Attempt,
    at: datetime,
    event: LedgerEvent,
) -> None:
    """Takes an event into the ledger; an ended attempt's, or one that is not its own, not.

    That files are gone is taken from anybody, since it is true for ever: the ledger has given them
    up before.
    """
    if isinstance(event, FilesDeleted):
        _files_gone(connection, attempt, event, at)
    if attempt.state is AttemptState.ENDED:
        return
    match event:
        case FilesDeleted():
            pass
        case CheckpointVerified() | Resumed():
            _prove(connection, attempt, event, at)
        case CheckpointWritten():
            if _fault(attempt, event) is None:
                connection.execute(
                    upsert(connection, checkpoints)
                    .values(_written(attempt, event, at))
                    .on_conflict_do_nothing()
                )
        case CheckpointRejected():
            _quarantine(connection, attempt, event)


def offer(
    connection: Connection, call: CheckpointOffer, secret: str, now: datetime
) -> CheckpointAccepted:
    """Accepts the checkpoint into the ledger; repeated, it answers the same.

    Raises `StaleAttempt` unless it comes from the run's current attempt, names that attempt's own
    directory, and is not a different one than was accepted before.
    """
    caller = identify_instance(connection, call.group, call.host, call.instance, secret)
    attempt = _current_attempt(connection, caller, call)
    told = call.checkpoint
    fault = _fault(attempt, told)
    if fault is not None:
        raise StaleAttempt(fault)
    row = _known(connection, attempt, told)
    if row is not None and row["state"] in USABLE_CHECKPOINTS:
        if row["manifest_sha256"] != told.manifest_sha256:
            raise StaleAttempt(f"{told.checkpoint_id} was accepted with another manifest")
        return _answer(attempt, told, row["accepted_at"])
    if row is not None and row["state"] == CheckpointState.QUARANTINED:
        # As if it had been set apart just after it was accepted: the attempt itself is well.
        return _answer(attempt, told, row["accepted_at"] or now)
    if row is not None and row["state"] != CheckpointState.WRITTEN:
        raise StaleAttempt(f"{told.checkpoint_id} is {row['state']}")
    _accept(connection, attempt, told, now)
    return _answer(attempt, told, now)


def _current_attempt(connection: Connection, caller: Caller, call: CheckpointOffer) -> Attempt:
    """Held until the commit, so that it cannot end between this look and the acceptance."""
    row = (
        connection.execute(
            select(attempts)
            .where(
                attempts.c.run_id == caller.run_id,
                attempts.c.number == call.attempt,
                attempts.c.group == caller.group,
                CURRENT,
            )
            .with_for_update()
        )
        .mappings()
        .one_or_none()
    )
    if row is None or call.run_id != caller.run_id:
        raise StaleAttempt(f"attempt {call.attempt} of run {call.run_id} is not current here")
    return rows.attempt(row)


def _fault(attempt: Attempt, told: CheckpointWritten) -> str | None:
    """Why this can not be a checkpoint of the attempt; its place and id are derived, not free."""
    expected = f"a{attempt.number}-s{told.step}"
    if told.checkpoint_id != expected:
        return f"the checkpoint at step {told.step} is named {expected}, not as offered"
    parts = PurePosixPath(told.uri).parts
    place = ("runs", attempt.run_id, f"a{attempt.number}", "checkpoints", str(told.step))
    if ".." in parts or "\0" in told.uri or parts[-len(place) :] != place:
        return f"{told.checkpoint_id} does not lie in the attempt's own directory"
    if max(len(told.manifest_sha256), len(told.state_digest)) > DIGEST_LENGTH:
        return f"{told.checkpoint_id} has digests that are no digests"
    return None


def _known(connection: Connection, attempt: Attempt, told: CheckpointWritten) -> RowMapping | None:
    return (
        connection.execute(
            select(checkpoints).where(
                checkpoints.c.run_id == attempt.run_id, checkpoints.c.id == told.checkpoint_id
            )
        )
        .mappings()
        .one_or_none()
    )


def _accept(
    connection: Connection, attempt: Attempt, told: CheckpointWritten, now: datetime
) -> None:
    values = _written(attempt, told, now) | {
        "state": CheckpointState.ACCEPTED,
        "accepted_at": now,
    }
    fresh = {key: value for key, value in values.items() if key != "written_at"}
    connection.execute(
        upsert(connection, checkpoints)
        .values(values)
        .on_conflict_do_update(index_elements=["run_id", "id"], set_=fresh)
    )
    connection.execute(
        update(attempts)
        .where(
            attempts.c.run_id == attempt.run_id,
            attempts.c.number == attempt.number,
            or_(attempts.c.accepted_step.is_(None), attempts.c.accepted_step < told.step),
        )
        .values(accepted_step=told.step)
    )
    if told.save_request > 0:
        _serve(connection, attempt.run_id, told.save_request)
    body = {"checkpoint_id": told.checkpoint_id, "step": told.step, "bytes": told.bytes}
    tell(connection, attempt.run_id, "checkpoint_accepted", now, attempt=attempt.number, **body)


def _written(attempt: Attempt, told: CheckpointWritten, at: datetime) -> dict[str, object]:
    return {
        "run_id": attempt.run_id,
        "id": told.checkpoint_id,
        "attempt": attempt.number,
        "branch": attempt.branch,
        "step": told.step,
        "uri": told.uri,
        "state": CheckpointState.WRITTEN,
        "bytes": told.bytes,
        "files": told.files,
        "manifest_sha256": told.manifest_sha256,
        "state_digest": told.state_digest,
        "stall_seconds": told.stall_seconds,
        "write_seconds": told.write_seconds,
        "written_at": at,
    }


def _serve(connection: Connection, run_id: str, request: int) -> None:
    """A person's wish for a save is answered; one that nobody made is not."""
    r = runs.c
    connection.execute(
        update(runs)
        .where(r.id == run_id, r.save_served < request, r.save_request >= request)
        .values(save_served=request)
    )


def _answer(attempt: Attempt, told: CheckpointWritten, at: datetime) -> CheckpointAccepted:
    return CheckpointAccepted(
        run_id=attempt.run_id,
        checkpoint_id=told.checkpoint_id,
        step=told.step,
        accepted_at=at,
        manifest_sha256=told.manifest_sha256,
    )


def _prove(
    connection: Connection, attempt: Attempt, event: CheckpointVerified | Resumed, at: datetime
) -> None:
    """A restore proves more than a look at the files does; of what it began from, or wrote."""
    connection.execute(
        update(checkpoints)
        .where(
            checkpoints.c.run_id == attempt.run_id,
            checkpoints.c.id == event.checkpoint_id,
            checkpoints.c.state == CheckpointState.ACCEPTED,
            _own(attempt),
        )
        .values(state=CheckpointState.VERIFIED, verified_at=at)
    )


def _files_gone(
    connection: Connection, attempt: Attempt, event: FilesDeleted, at: datetime
) -> None:
    connection.execute(
        update(checkpoints)
        .where(
            checkpoints.c.run_id == attempt.run_id,
            checkpoints.c.uri == event.uri,
            checkpoints.c.state == CheckpointState.DELETED,
        )
        .values(files_gone_at=at)
    )


def _own(attempt: Attempt) -> ColumnElement[bool]:
    """What it was told to resume from, and what it wrote itself."""
    return or_(
        checkpoints.c.attempt == attempt.number, checkpoints.c.id == attempt.resume_checkpoint
    )


def _quarantine(connection: Connection, attempt: Attempt, event: CheckpointRejected) -> None:
    """An attempt may reject what it was told to resume from, and what it wrote itself."""
    connection.execute(
        update(checkpoints)
        .where(
            checkpoints.c.run_id == attempt.run_id,
            checkpoints.c.id == event.checkpoint_id,
            checkpoints.c.state != CheckpointState.DELETED,
            _own(attempt),
        )
        .values(state=CheckpointState.QUARANTINED, reason=fit(event.reason, REASON_LENGTH))
    )
