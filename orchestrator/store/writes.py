"""Commits what was decided: every change of one plan, or none, under the leader's lease.

Owns the moves of runs, attempts, groups and incidents in the database and the causal timeline that
tells of them. Only the holder of the lease calls this.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import assert_never

from sqlalchemy import Connection, func, insert, select, update

from orchestrator.reconcile.plan import (
    BuryTrainer,
    Change,
    CloseIncident,
    EndAttempt,
    MakeAttempt,
    MakeGroup,
    MarkHost,
    MoveAttempt,
    MoveGroup,
    MoveRun,
    NoteTaken,
    OpenBranch,
    OpenIncident,
    Plan,
    PlanLaunch,
    ReviseVerdict,
)
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import HOST_GONE
from orchestrator.state import (
    ATTEMPT_TABLE,
    GROUP_TABLE,
    RUN_TABLE,
    TERMINAL_RUNS,
    AttemptCause,
    AttemptState,
    GroupCause,
    GroupState,
    IllegalMove,
    RunState,
    move,
)
from orchestrator.store import claims, lease, pages, revising, rows
from orchestrator.store.reads import USABLE
from orchestrator.store.tables import (
    attempts,
    checkpoints,
    host_groups,
    hosts,
    incidents,
    runs,
    trainers,
    upsert,
)
from orchestrator.store.timeline import tell


class Stale(Exception):
    """The rows have changed since the decision was made: decide again."""


@dataclass(frozen=True)
class _Commit:
    connection: Connection
    snap: Snapshot
    now: datetime

    @property
    def run_id(self) -> str:
        return self.snap.run.id

    def tell(self, kind: str, attempt: int | None = None, **body: object) -> None:
        tell(self.connection, self.run_id, kind, self.now, attempt=attempt, **body)


def commit_plan(
    connection: Connection, snap: Snapshot, plan: Plan, lease_token: int, now: datetime
) -> None:
    """Applies the plan's changes in order, all or none (the caller's transaction or savepoint).

    Raises `lease.Fenced` when another control plane leads, `Stale` when the run is no longer as
    `snap` shows it, and `IllegalMove` where a state table has no such move, which is a bug.
    """
    lease.check(connection, lease_token)
    _refuse_stale(connection, snap)
    commit = _Commit(connection, snap, now)
    for change in plan.changes:
        _apply(commit, change)
    if any(isinstance(change, MoveRun | MoveGroup) for change in plan.changes):
        claims.drop_at_rest(connection, snap.run.id)
        wanted = snap.job.hosts
        claims.drop_unfit(connection, snap.run.id, wanted.provider, wanted.count)


def launch_secret(
    connection: Connection, group: str, host: int, secret_sha256: str, lease_token: int
) -> bool:
    """Lets the agent that is about to be launched in; False when the group is not wanted now."""
    lease.check(connection, lease_token)
    ready = connection.scalar(
        select(host_groups.c.state).where(host_groups.c.name == group).with_for_update(read=True)
    )
    if ready != GroupState.READY:
        return False
    changed = connection.execute(
        update(hosts)
        .where(hosts.c.group == group, hosts.c.index == host)
        .values(secret_sha256=secret_sha256)
    )
    return changed.rowcount == 1


def provider_failed(
    connection: Connection, group: str, words: str, refused: bool, lease_token: int, now: datetime
) -> None:
    """Keeps the provider's words on the group, and tells the timeline when they are new.

    Raises `lease.Fenced`: what a former leader was told may be long out of date.
    """
    lease.check(connection, lease_token)
    row = connection.execute(
        select(host_groups.c.run_id, host_groups.c.detail, host_groups.c.refused).where(
            host_groups.c.name == group
        )
    ).one_or_none()
    if row is None or (row.detail == words and (row.refused is not None) == refused):
        return
    values: dict[str, object] = {"detail": words}
    if refused:
        values["refused"] = words
    connection.execute(update(host_groups).where(host_groups.c.name == group).values(values))
    kind = "provider_refused" if refused else "provider_failed"
    tell(connection, row.run_id, kind, now, group=group, detail=words)


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


def _apply(commit: _Commit, change: Change) -> None:
    match change:
        case MoveRun():
            _move_run(commit, change)
        case MakeGroup():
            _make_group(commit, change)
        case MoveGroup():
            _move_group(commit, change)
        case MakeAttempt():
            _make_attempt(commit, change)
        case MoveAttempt():
            _move_attempt(commit, change)
        case NoteTaken():
            _note_taken(commit, change)
        case MarkHost():
            _mark_host(commit, change)
        case EndAttempt():
            _end_attempt(commit, change)
        case ReviseVerdict():
            revising.revise(commit.connection, commit.run_id, change, commit.now)
        case OpenBranch():
            parent = commit.snap.run.branch
            revising.open_branch(commit.connection, commit.run_id, parent, change, commit.now)
        case OpenIncident():
            _open_incident(commit, change)
        case CloseIncident():
            _close_incident(commit, change)
        case PlanLaunch():
            _plan_launch(commit, change)
        case BuryTrainer():
            _bury_trainer(commit, change)
        case _:
            assert_never(change)


def _move_run(commit: _Commit, change: MoveRun) -> None:
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


def _make_group(commit: _Commit, change: MakeGroup) -> None:
    _claim(commit, change)
    values = asdict(change)
    commit.connection.execute(
        insert(host_groups).values(
            **values, run_id=commit.run_id, state=GroupState.REQUESTED, created_at=commit.now
        )
    )
    commit.connection.execute(
        insert(hosts), [{"group": change.name, "index": index} for index in range(change.hosts)]
    )
    commit.tell("group_made", None, **values)


def _claim(commit: _Commit, change: MakeGroup) -> None:
    limits = commit.snap.admission.limits
    try:
        claims.take(
            commit.connection,
            commit.run_id,
            change.provider,
            change.hosts,
            limits,
            commit.now,
        )
    except claims.NoRoom as error:
        raise Stale(str(error)) from error


def _move_group(commit: _Commit, change: MoveGroup) -> None:
    here = host_groups.c.name == change.name
    old = GroupState(
        commit.connection.execute(
            select(host_groups.c.state).where(here, host_groups.c.run_id == commit.run_id)
        ).scalar_one()
    )
    new = move(GROUP_TABLE, old, change.cause)
    values: dict[str, object] = {"state": new, "detail": change.detail}
    if change.cause is GroupCause.HOSTS_LOST:
        values["lost_in_wish"] = commit.snap.run.desired_generation
    if new is GroupState.READY:
        values["ready_at"] = commit.now
    if new is GroupState.GONE:
        values["released_at"] = commit.now
    commit.connection.execute(update(host_groups).where(here).values(values))
    words = {"from": old, "to": new, "cause": change.cause, "detail": change.detail}
    commit.tell("group_moved", None, group=change.name, **words)


def _note_taken(commit: _Commit, change: NoteTaken) -> None:
    values = {"taken": change.notice, "taken_at": commit.now, "taken_text": change.text}
    commit.connection.execute(
        update(host_groups).where(host_groups.c.name == change.group).values(values)
    )
    commit.tell("group_taken", None, group=change.group, notice=change.notice, text=change.text)


def _mark_host(commit: _Commit, change: MarkHost) -> None:
    since = commit.now if change.unreachable else None
    commit.connection.execute(
        update(hosts)
        .where(hosts.c.group == change.group, hosts.c.index == change.host)
        .values(unreachable_at=since)
    )
    kind = "host_unreachable" if change.unreachable else "host_heard_again"
    commit.tell(kind, None, group=change.group, host=change.host, words=change.words)


def _make_attempt(commit: _Commit, change: MakeAttempt) -> None:
    """Invariant 1: never beside another current one; the table's unique index holds it too."""
    current = commit.connection.scalar(
        select(attempts.c.number).where(
            attempts.c.run_id == commit.run_id, attempts.c.state != AttemptState.ENDED
        )
    )
    if current is not None:
        raise IllegalMove(f"attempt {change.number} asked for while {current} is current")
    _refuse_unusable(commit, change.resume_checkpoint)
    values = asdict(change)
    # The agents that serve it came before it, also by a clock that has been set back since.
    registered = (host.registered_at for host in commit.snap.hosts if host.registered_at)
    made_at = max((*registered, commit.now))
    commit.connection.execute(
        insert(attempts).values(
            **values, run_id=commit.run_id, state=AttemptState.REQUESTED, created_at=made_at
        )
    )
    del values["number"]
    commit.tell("attempt_made", change.number, **values)


def _refuse_unusable(commit: _Commit, checkpoint: str | None) -> None:
    if checkpoint is None:
        return
    state = commit.connection.scalar(
        select(checkpoints.c.state)
        .where(checkpoints.c.run_id == commit.run_id, checkpoints.c.id == checkpoint)
        .with_for_update(read=True)
    )
    if state not in USABLE:
        raise Stale(f"checkpoint {checkpoint} is {state} now")


def _attempt_state(commit: _Commit, number: int) -> AttemptState:
    return AttemptState(
        commit.connection.execute(
            select(attempts.c.state).where(
                attempts.c.run_id == commit.run_id, attempts.c.number == number
            )
        ).scalar_one()
    )


def _move_attempt(commit: _Commit, change: MoveAttempt) -> None:
    old = _attempt_state(commit, change.number)
    values: dict[str, object] = {"state": move(ATTEMPT_TABLE, old, change.cause)}
    if change.cause is AttemptCause.STOP_ASKED:
        values["stop_asked_at"] = commit.now
    _update_attempt(commit, change.number, values)
    words = {"from": old, "to": values["state"], "cause": change.cause}
    commit.tell("attempt_moved", change.number, **words)


def _end_attempt(commit: _Commit, change: EndAttempt) -> None:
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


def _refuse_overtaken(commit: _Commit, number: int) -> None:
    """A checkpoint accepted since the look may be the last one: then the attempt is complete."""
    accepted = commit.connection.scalar(
        select(attempts.c.accepted_step)
        .where(attempts.c.run_id == commit.run_id, attempts.c.number == number)
        .with_for_update()
    )
    seen = next((one for one in commit.snap.attempts if one.number == number), None)
    if seen is not None and accepted != seen.accepted_step:
        raise Stale(f"step {accepted} of attempt {number} has just been accepted")


def _update_attempt(commit: _Commit, number: int, values: dict[str, object]) -> None:
    commit.connection.execute(
        update(attempts)
        .where(attempts.c.run_id == commit.run_id, attempts.c.number == number)
        .values(values)
    )


def _open_incident(commit: _Commit, change: OpenIncident) -> None:
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
        )
    )
    if change.needs_person:
        pages.want(commit.connection, commit.run_id, number, commit.now)
    words = {"number": number, "verdict": change.verdict, "summary": change.summary}
    commit.tell("incident_opened", change.attempt or None, **words)


def _close_incident(commit: _Commit, change: CloseIncident) -> None:
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


def _plan_launch(commit: _Commit, change: PlanLaunch) -> None:
    """Forgets the agent before; its secret and its registration are void from here on."""
    seen = next((host for host in commit.snap.hosts if host.index == change.host), None)
    here = (hosts.c.group == change.group, hosts.c.index == change.host)
    instance = commit.connection.execute(select(hosts.c.instance).where(*here)).scalar_one()
    if seen is None or instance != seen.instance:
        raise Stale(f"the agent of host {change.host} has just registered")
    commit.connection.execute(
        update(hosts)
        .where(*here)
        .values(
            launched_at=commit.now,
            launches=hosts.c.launches + 1,
            instance=None,
            registered_at=None,
            running_attempt=None,
            secret_sha256=None,
        )
    )
    commit.tell("agent_launched", None, group=change.group, host=change.host)


def _bury_trainer(commit: _Commit, change: BuryTrainer) -> None:
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
