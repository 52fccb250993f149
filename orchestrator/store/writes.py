"""Commits what was decided: every change of one plan, or none, under the leader's lease.

Owns the moves of runs, attempts and incidents in the database; what becomes of host groups is
`group_writes`'s. Only the holder of the lease calls this.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import assert_never

from sqlalchemy import Connection, func, insert, select, update

from orchestrator.reconcile.plan import (
    BuryTrainer,
    Change,
    CloseIncident,
    DeleteCheckpoint,
    EndAttempt,
    MakeAttempt,
    MakeGroup,
    MarkHost,
    MoveAttempt,
    MoveGroup,
    MoveRun,
    NoteSlow,
    NoteTaken,
    OpenBranch,
    OpenIncident,
    Plan,
    PlanLaunch,
    ReviseVerdict,
    TellReplay,
)
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import HOST_GONE
from orchestrator.state import (
    ATTEMPT_TABLE,
    RUN_TABLE,
    TERMINAL_RUNS,
    USABLE_CHECKPOINTS,
    AttemptCause,
    AttemptState,
    IllegalMove,
    RunState,
    Verdict,
    move,
)
from orchestrator.store import (
    claims,
    giving_up,
    group_writes,
    lease,
    pages,
    replaying,
    revising,
    rows,
)
from orchestrator.store.committing import Commit, Stale
from orchestrator.store.conditions import CURRENT
from orchestrator.store.tables import (
    attempts,
    checkpoints,
    incidents,
    runs,
    trainers,
    upsert,
)


def commit_plan(
    connection: Connection, snap: Snapshot, plan: Plan, lease_token: int, now: datetime
) -> None:
    """Applies the plan's changes in order, all or none (the caller's transaction or savepoint).

    Raises `lease.Fenced` when another control plane leads, `Stale` when the run is no longer as
    `snap` shows it, and `IllegalMove` where a state table has no such move, which is a bug.
    """
    lease.check(connection, lease_token)
    _refuse_stale(connection, snap)
    commit = Commit(connection, snap, now)
    for change in plan.changes:
        _apply(commit, change)
    if any(isinstance(change, MoveRun | MoveGroup) for change in plan.changes):
        claims.drop_at_rest(connection, snap.run.id)
        wanted = snap.job.hosts
        claims.drop_unfit(connection, snap.run.id, wanted.provider, wanted.count)


def _refuse_stale(connection: Connection, snap: Snapshot) -> None:
    run = snap.run
    row = connection.execute(
        select(
            runs.c.desired, runs.c.desired_generation, runs.c.state, runs.c.revision, runs.c.branch
        )
        .where(runs.c.id == run.id)
        .with_for_update()
    ).one_or_none()
    seen = (run.desired, run.desired_generation, run.state, run.revision, run.branch)
    if row is None or tuple(row) != seen:
        raise Stale(f"run {run.id} has changed since it was looked at")


def _apply(commit: Commit, change: Change) -> None:
    match change:
        case MoveRun():
            _move_run(commit, change)
        case MakeGroup():
            group_writes.make_group(commit, change)
        case MoveGroup():
            group_writes.move_group(commit, change)
        case MakeAttempt():
            _make_attempt(commit, change)
        case MoveAttempt():
            _move_attempt(commit, change)
        case NoteTaken():
            group_writes.note_taken(commit, change)
        case MarkHost():
            group_writes.mark_host(commit, change)
        case EndAttempt():
            _end_attempt(commit, change)
        case ReviseVerdict():
            revising.revise(commit.connection, commit.run_id, change, commit.now)
        case OpenBranch():
            parent = commit.snap.run.branch
            revising.open_branch(commit.connection, commit.run_id, parent, change, commit.now)
        case DeleteCheckpoint():
            giving_up.delete(commit, change)
        case OpenIncident():
            _open_incident(commit, change)
        case TellReplay():
            _tell_replay(commit, change)
        case CloseIncident():
            _close_incident(commit, change)
        case PlanLaunch():
            group_writes.plan_launch(commit, change)
        case BuryTrainer():
            _bury_trainer(commit, change)
        case NoteSlow():
            _note_slow(commit, change)
        case _:
            assert_never(change)


def _move_run(commit: Commit, change: MoveRun) -> None:
    here = runs.c.id == commit.run_id
    old = RunState(commit.connection.execute(select(runs.c.state).where(here)).scalar_one())
    new = move(RUN_TABLE, old, change.cause)
    values: dict[str, object] = {
        "state": new,
        "state_since": commit.now,
        "reason": change.reason,
        "finished_at": commit.now if new in TERMINAL_RUNS else None,
    }
    if new is RunState.QUEUED:
        values["queued_at"] = commit.now
    if change.settle:
        values["settled_generation"] = commit.snap.run.desired_generation
    commit.connection.execute(update(runs).where(here).values(values))
    words = {"from": old, "to": new, "cause": change.cause, "reason": change.reason}
    commit.tell("run_moved", None, **words)


def _make_attempt(commit: Commit, change: MakeAttempt) -> None:
    """Invariant 1: never beside another current one; the table's unique index holds it too."""
    current = commit.connection.scalar(
        select(attempts.c.number).where(attempts.c.run_id == commit.run_id, CURRENT)
    )
    if current is not None:
        raise IllegalMove(f"attempt {change.number} asked for while {current} is current")
    _refuse_unusable(commit, change.resume_checkpoint)
    values = asdict(change)
    before = replaying.told_before(commit.connection, commit.run_id)
    replays = before is not None and before > change.resumed_from_step
    # The agents that serve it came before it, also by a clock that has been set back since.
    registered = (host.registered_at for host in commit.snap.hosts if host.registered_at)
    made_at = max((*registered, commit.now))
    commit.connection.execute(
        insert(attempts).values(
            **values,
            run_id=commit.run_id,
            state=AttemptState.REQUESTED,
            created_at=made_at,
            replays_through=before if replays else None,
        )
    )
    del values["number"]
    commit.tell("attempt_made", change.number, **values)


def _refuse_unusable(commit: Commit, checkpoint: str | None) -> None:
    if checkpoint is None:
        return
    state = commit.connection.scalar(
        select(checkpoints.c.state)
        .where(checkpoints.c.run_id == commit.run_id, checkpoints.c.id == checkpoint)
        .with_for_update(read=True)
    )
    if state not in USABLE_CHECKPOINTS:
        raise Stale(f"checkpoint {checkpoint} is {state} now")


def _attempt_state(commit: Commit, number: int) -> AttemptState:
    return AttemptState(
        commit.connection.execute(
            select(attempts.c.state).where(
                attempts.c.run_id == commit.run_id, attempts.c.number == number
            )
        ).scalar_one()
    )


def _move_attempt(commit: Commit, change: MoveAttempt) -> None:
    old = _attempt_state(commit, change.number)
    values: dict[str, object] = {"state": move(ATTEMPT_TABLE, old, change.cause)}
    if change.cause is AttemptCause.STOP_ASKED:
        values["stop_asked_at"] = commit.now
    _update_attempt(commit, change.number, values)
    words = {"from": old, "to": values["state"], "cause": change.cause}
    commit.tell("attempt_moved", change.number, **words)


def _end_attempt(commit: Commit, change: EndAttempt) -> None:
    old = _attempt_state(commit, change.number)
    _refuse_overtaken(commit, change.number)
    values: dict[str, object] = {
        "state": move(ATTEMPT_TABLE, old, AttemptCause.ALL_DEAD),
        "ended_at": commit.now,
        "verdict": change.verdict,
        "summary": change.summary,
        "evidence": rows.evidence_text(change.evidence),
        "bad_step": change.bad_step,
    }
    _update_attempt(commit, change.number, values)
    commit.tell("attempt_ended", change.number, verdict=change.verdict, summary=change.summary)


def _refuse_overtaken(commit: Commit, number: int) -> None:
    """A checkpoint accepted since the look may be the last one: then the attempt is complete."""
    accepted = commit.connection.scalar(
        select(attempts.c.accepted_step)
        .where(attempts.c.run_id == commit.run_id, attempts.c.number == number)
        .with_for_update()
    )
    seen = next((one for one in commit.snap.attempts if one.number == number), None)
    if seen is not None and accepted != seen.accepted_step:
        raise Stale(f"step {accepted} of attempt {number} has just been accepted")


def _update_attempt(commit: Commit, number: int, values: dict[str, object]) -> None:
    commit.connection.execute(
        update(attempts)
        .where(attempts.c.run_id == commit.run_id, attempts.c.number == number)
        .values(values)
    )


def _open_incident(commit: Commit, change: OpenIncident) -> None:
    _insert_incident(commit, change)


def _tell_replay(commit: Commit, change: TellReplay) -> None:
    opened = OpenIncident(
        change.attempt, Verdict.NOT_REPRODUCED, change.summary, change.evidence, change.done, True
    )
    _insert_incident(commit, opened, closed_at=commit.now, closed_by_attempt=change.attempt)
    _update_attempt(commit, change.attempt, {"replay_told_at": commit.now})


def _insert_incident(commit: Commit, change: OpenIncident, **closed: object) -> None:
    newest = commit.connection.scalar(
        select(func.max(incidents.c.number)).where(incidents.c.run_id == commit.run_id)
    )
    number = (newest or 0) + 1
    commit.connection.execute(
        insert(incidents).values(
            run_id=commit.run_id,
            number=number,
            attempt=change.attempt,
            verdict=change.verdict,
            opened_at=commit.now,
            summary=change.summary,
            evidence=rows.evidence_text(change.evidence),
            done=rows.lines_text(change.done),
            needs_person=change.needs_person,
            **closed,
        )
    )
    if change.needs_person:
        pages.want(commit.connection, commit.run_id, number, commit.now)
    words = {"number": number, "verdict": change.verdict, "summary": change.summary}
    commit.tell("incident_opened", change.attempt or None, **words)


def _close_incident(commit: Commit, change: CloseIncident) -> None:
    closed = commit.connection.execute(
        update(incidents)
        .where(
            incidents.c.run_id == commit.run_id,
            incidents.c.number == change.number,
            incidents.c.closed_at.is_(None),
        )
        .values(closed_at=commit.now, closed_by_attempt=change.closed_by_attempt)
    )
    if closed.rowcount == 1:
        commit.tell("incident_closed", change.closed_by_attempt, number=change.number)


def _bury_trainer(commit: Commit, change: BuryTrainer) -> None:
    values: dict[str, object] = {"exited_at": commit.now, "why_killed": change.why}
    if change.host_gone:
        values["killed_for"] = HOST_GONE
    key = {"run_id": commit.run_id, "attempt": change.attempt, "rank": change.rank}
    commit.connection.execute(
        upsert(commit.connection, trainers)
        .values(**key, **values)
        .on_conflict_do_update(
            index_elements=list(key), set_=values, where=trainers.c.exited_at.is_(None)
        )
    )
    commit.tell("trainer_buried", change.attempt, rank=change.rank, why=change.why)


def _note_slow(commit: Commit, change: NoteSlow) -> None:
    table = attempts if change.rank is None else trainers
    number = attempts.c.number if change.rank is None else trainers.c.attempt
    here = [table.c.run_id == commit.run_id, number == change.attempt]
    if change.rank is not None:
        here.append(trainers.c.rank == change.rank)
    commit.connection.execute(update(table).where(*here).values(slow_why=change.words))
    what = "run" if change.rank is None else "host"
    kind = f"{what}_slow" if change.words else f"{what}_keeps_up"
    commit.tell(kind, change.attempt, rank=change.rank, words=change.words)
